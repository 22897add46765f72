"""What a worker of any serving framework does for a sealed model. No private key ever comes here."""
