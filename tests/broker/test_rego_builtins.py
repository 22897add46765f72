"""The list of builtins that a release policy may call: each one proved true, proved not always true, and strict.

Expected values are those of the Rego language reference. A builtin that this interpreter left undefined would
fail its first case; one that answered true to everything, its second.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from strongroom.broker.rego import PROVED_BUILTINS, ReleasePolicy
from strongroom.errors import ConfigurationInvalid

# builtin: (an expression that holds, one that does not, one with an argument of the wrong type or None)
CASES = {
    "abs": ("abs(-3) == 3", "abs(-3) == -3", 'abs("x") == 3'),
    "array.concat": ("array.concat([1], [2]) == [1, 2]", "array.concat([1], [2]) == [2, 1]", "array.concat(1, [2])"),
    "array.reverse": ("array.reverse([1, 2]) == [2, 1]", "array.reverse([1, 2]) == [1, 2]", "array.reverse(1)"),
    "base64.decode": ('base64.decode("YQ==") == "a"', 'base64.decode("YQ==") == "b"', "base64.decode(1)"),
    "base64url.decode": ('base64url.decode("YT8_") == "a??"', 'base64url.decode("YQ") == "b"', "base64url.decode(1)"),
    "ceil": ("ceil(1.2) == 2", "ceil(1.2) == 1", 'ceil("1")'),
    "concat": ('concat("/", ["a", "b"]) == "a/b"', 'concat("/", ["a", "b"]) == "b/a"', 'concat("/", 1)'),
    "contains": ('contains("abc", "bc")', 'contains("abc", "cb")', 'contains(1, "a")'),
    "count": ("count([1, 2]) == 2", "count([]) == 1", "count(1)"),
    "endswith": ('endswith("abc", "bc")', 'endswith("abc", "ab")', 'endswith(1, "a")'),
    "floor": ("floor(1.8) == 1", "floor(1.8) == 2", 'floor("1")'),
    "format_int": ('format_int(255, 16) == "ff"', 'format_int(255, 10) == "ff"', 'format_int("a", 16)'),
    "indexof": ('indexof("abc", "c") == 2', 'indexof("abc", "x") == 0', 'indexof(1, "a")'),
    "intersection": ("intersection({{1, 2}, {2, 3}}) == {2}", "intersection({{1}, {2}}) == {1}", "intersection(1)"),
    "is_array": ("is_array([])", 'is_array("a")', None),
    "is_boolean": ("is_boolean(false)", "is_boolean(0)", None),
    "is_null": ("is_null(null)", "is_null(0)", None),
    "is_number": ("is_number(1.5)", 'is_number("1")', None),
    "is_object": ("is_object({})", "is_object([])", None),
    "is_set": ("is_set({1})", "is_set([1])", None),
    "is_string": ('is_string("")', "is_string(1)", None),
    "json.unmarshal": ('json.unmarshal("{\\"a\\": 1}").a == 1', 'json.unmarshal("[]") == {}', "json.unmarshal(1)"),
    "lower": ('lower("aBC") == "abc"', 'lower("aBC") == "ABC"', "lower(1)"),
    "max": ("max([1, 3, 2]) == 3", "max([1, 3, 2]) == 2", "max(1)"),
    "min": ("min([3, 1, 2]) == 1", "min([3, 1, 2]) == 2", "min(1)"),
    "numbers.range": ("numbers.range(1, 3) == [1, 2, 3]", "numbers.range(1, 3) == [1, 2]", 'numbers.range("a", 3)'),
    "object.get": ('object.get({"a": 1}, "b", 7) == 7', 'object.get({"a": 1}, "a", 7) == 7', 'object.get(1, "a", 7)'),
    "object.keys": ('object.keys({"a": 1}) == {"a"}', 'object.keys({"a": 1}) == {"b"}', "object.keys(1)"),
    "regex.match": ('regex.match("^a+$", "aaa")', 'regex.match("^a+$", "aab")', 'regex.match("^a$", 1)'),
    "replace": ('replace("aba", "a", "c") == "cbc"', 'replace("aba", "a", "c") == "cba"', 'replace(1, "a", "b")'),
    "round": ("round(1.5) == 2", "round(1.4) == 2", 'round("1")'),
    "sort": ("sort([3, 1, 2]) == [1, 2, 3]", "sort([3, 1]) == [3, 1]", "sort(1)"),
    "split": ('split("a/b", "/") == ["a", "b"]', 'split("a/b", "/") == ["a"]', 'split(1, "/")'),
    "startswith": ('startswith("abc", "ab")', 'startswith("abc", "bc")', 'startswith(1, "a")'),
    "strings.any_prefix_match": (
        'strings.any_prefix_match("abc", ["x", "ab"])', 'strings.any_prefix_match("abc", ["x"])', None,
    ),
    "strings.any_suffix_match": (
        'strings.any_suffix_match("abc", ["x", "bc"])', 'strings.any_suffix_match("abc", ["x"])', None,
    ),
    "substring": ('substring("abcde", 1, 3) == "bcd"', 'substring("abcde", 1, 3) == "abc"', "substring(1, 0, 1)"),
    "sum": ("sum([1, 2, 3]) == 6", "sum([1, 2]) == 4", "sum(1)"),
    "to_number": ('to_number("12") == 12', 'to_number("12") == 13', 'to_number("x")'),
    "trim": ('trim("..a..", ".") == "a"', 'trim("..a..", ".") == "..a.."', 'trim(1, ".")'),
    "trim_left": ('trim_left("..a..", ".") == "a.."', 'trim_left("..a", ".") == "..a"', 'trim_left(1, ".")'),
    "trim_prefix": ('trim_prefix("abc", "ab") == "c"', 'trim_prefix("abc", "ab") == "abc"', 'trim_prefix(1, "a")'),
    "trim_right": ('trim_right("..a..", ".") == "..a"', 'trim_right("a..", ".") == "a.."', 'trim_right(1, ".")'),
    "trim_space": ('trim_space(" a ") == "a"', 'trim_space(" a ") == " a "', "trim_space(1)"),
    "trim_suffix": ('trim_suffix("abc", "bc") == "a"', 'trim_suffix("abc", "bc") == "abc"', 'trim_suffix(1, "a")'),
    "type_name": ('type_name("a") == "string"', 'type_name(1) == "string"', None),
    "union": ("union({{1}, {2}}) == {1, 2}", "union({{1}, {2}}) == {1}", "union(1)"),
    "upper": ('upper("aBc") == "ABC"', 'upper("aBc") == "abc"', "upper(1)"),
}  # fmt: skip


def decide(body: str) -> bool:
    policy = ReleasePolicy(f"package policy\n\nimport rego.v1\n\nallow if {{\n\t{body}\n}}\n")
    return policy.decide({}, {"plugin": "resource"}).granted


def test_every_builtin_on_the_list_is_proved_and_no_other():
    assert set(CASES) == PROVED_BUILTINS


def test_the_protocol_page_lists_the_same_builtins():
    page = Path(__file__).parents[2].joinpath("docs/release.md").read_text("utf-8")
    listed = page.split("which our tests have proved one by one:")[1].split("The keyword")[0]
    assert set(re.findall(r"`([\w.]+)`", listed)) == PROVED_BUILTINS


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_proved_builtin_is_true_where_it_should_be(name):
    assert decide(CASES[name][0])


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_proved_builtin_is_not_true_elsewhere(name):
    assert not decide(CASES[name][1])
    assert decide(f"not {CASES[name][1]}")


@pytest.mark.parametrize("name", sorted(name for name, case in CASES.items() if case[2]))
def test_a_builtin_that_fails_denies_also_behind_not(name):
    assert not decide(CASES[name][2])
    assert not decide(f"not {CASES[name][2]}")


@pytest.mark.parametrize(
    "call",
    [
        'semver.compare("1.0.0", "2.0.0")', 'net.cidr_contains("10.0.0.0/8", "10.1.1.1")',
        'time.parse_rfc3339_ns("2026-01-01T00:00:00Z")', "time.now_ns()", 'http.send({"url": "http://x"})', 
        "opa.runtime()", "array.slice(1, 0, 1)", "all([true])",
        'io.jwt.decode("a.b.c")', 'rand.intn("a", 5)', 'crypto.sha256("a")', 'trace("a")', "nosuch(1)",
        'sprintf("%d", [1])', "net . cidr_contains(1, 2)",
    ],
)  # fmt: skip
def test_a_builtin_that_is_not_on_the_list_is_refused_when_the_policy_is_set(call):
    for text in (f"allow if {{ not {call} }}", f"allow if {{ x := {call}; x == 1 }}", f"deny := {call}"):
        with pytest.raises(ConfigurationInvalid, match=r"not on the list|not accepted"):
            ReleasePolicy.parse(f"package policy\n\nimport rego.v1\n\n{text}\n")


@pytest.mark.parametrize(
    "text",
    [
        'allow if {\n  sprintf("%s", ["a"])\n}',
        "probe if {\n\twalk(input)\n}\n\nallow if { not probe }",
        "allow if\n  any([true])",
        "allow if\n  all([true]) = x",
        "found := [\n  product([1, 2])\n]",
        "found :=\n  cast_array(1)",
        "found := { x |\n  nosuch(x) = 1 }",
        "found := count(\n  set_diff({1}, {2})\n)",
        "nosuch(x)\nallow if { nosuch(1) }",
    ],
)
def test_an_unproved_builtin_that_begins_a_line_is_no_function_of_the_policys_own(text):
    with pytest.raises(ConfigurationInvalid, match="not on the list"):
        ReleasePolicy.parse(f"package policy\n\nimport rego.v1\n\n{text}\n")


@pytest.mark.parametrize("name", ["sprintf", "walk", "count"])
def test_a_policys_own_function_has_not_the_name_of_a_builtin(name):
    with pytest.raises(ConfigurationInvalid, match="is the name of a builtin"):
        ReleasePolicy.parse(f"package policy\n\nimport rego.v1\n\n{name}(x) := true\n\nallow if {{ {name}(1) }}\n")


@pytest.mark.parametrize(
    "head",
    [
        "own(x) := true",
        "own(x) = true",
        "own(x) if x == 1",
        "own(\n\tx,\n) := true",
        "own(x) := true if {\n\tx == 1\n} else := false",
        'other := "a # {"\n\nown(x) if { x == 1 }',
        "default own(_) := false\n\nown(x) if { x == 1 }",
    ],
)
def test_every_form_of_a_functions_head_is_known(head):
    text = f"package policy\n\nimport rego.v1\n\n{head}\n\nallow if {{ own(1) }}\n"
    assert ReleasePolicy.parse(text).decide({}, {}).granted


@pytest.mark.parametrize(
    "text",
    [
        "package policy\n\nallow if {",
        "package other\n\nallow := true",
        "allow := true",
        "package policy\n\nallow if { count([1]) == 1 with input as {} }",
        "# package policy\npackage elsewhere\nallow := true",
        "x" * 300_000,
        "",
    ],
    ids=["unclosed", "other package", "no package", "with", "package in a comment", "too long", "empty"],
)
def test_a_policy_that_cannot_be_used_is_refused_when_it_is_set(text):
    with pytest.raises(ConfigurationInvalid):
        ReleasePolicy.parse(text)


def test_calls_inside_strings_and_comments_are_no_calls():
    ReleasePolicy.parse('package policy\n\n# http.send(1)\nallow if { input.a == "time.now_ns()" }\n')


def test_a_policys_own_functions_may_be_called():
    text = "package policy\n\nimport rego.v1\n\ndouble(x) := x * 2\n\nallow if { double(2) == 4 }\n"
    assert ReleasePolicy.parse(text).decide({}, {}).granted
