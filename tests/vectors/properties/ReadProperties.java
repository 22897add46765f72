import java.io.ByteArrayInputStream;
import java.nio.charset.StandardCharsets;
import java.util.Properties;
import java.util.Scanner;
import java.util.StringJoiner;
import java.util.TreeSet;

/** A file in hex on each line of stdin; for each its settings, as hex of UTF-16 "name=value", or "refused". */
public class ReadProperties {
    private static String hex(byte[] octets) {
        StringBuilder text = new StringBuilder();
        for (byte octet : octets) text.append(String.format("%02x", octet));
        return text.toString();
    }

    private static String hex(String text) {
        StringBuilder found = new StringBuilder();
        for (char unit : text.toCharArray()) found.append(String.format("%04x", (int) unit));
        return found.toString();
    }

    public static void main(String[] none) {
        Scanner lines = new Scanner(System.in);
        while (lines.hasNextLine()) {
            String line = lines.nextLine();
            byte[] octets = new byte[line.length() / 2];
            for (int i = 0; i < octets.length; i++)
                octets[i] = (byte) Integer.parseInt(line.substring(2 * i, 2 * i + 2), 16);
            Properties settings = new Properties();
            try {
                settings.load(new ByteArrayInputStream(octets));
            } catch (Exception refused) {
                System.out.println("refused");
                continue;
            }
            StringJoiner said = new StringJoiner(" ");
            for (String name : new TreeSet<>(settings.stringPropertyNames()))
                said.add(hex(name) + "=" + hex(settings.getProperty(name)));
            System.out.println(said);
        }
    }
}
