"""Templates of `--format`: what they show, and that nobody's template costs more than it may."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfs.cli.gotemplate import Template
from layerfs.cli.templatefuncs import HEADERS
from layerfs.errors import UsageError

DATA: dict[str, Any] = {
    "Id": "0123456789ab",
    "Name": "/base",
    "State": {"Status": "running", "Running": True, "Pid": 17, "ExitCode": 0},
    "Config": {
        "Env": ["A=1", "B=2"],
        "Labels": {"x": "one", "com.example/y": "two"},
        "Cmd": None,
        "Volumes": {},
    },
    "Mounts": [{"Source": "/a", "RW": True}, {"Source": "/b", "RW": False}],
    "Ratio": 0.5,
    "Label": lambda name: f"label {name}",
    "Size": lambda: "3MB",
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain", "plain"),
        ("", ""),
        ("{{.Id}}", "0123456789ab"),
        ("{{ .ID }}", "0123456789ab"),
        ("{{.State.Status}}:{{.State.Pid}}", "running:17"),
        ("{{.State.Running}} {{.Ratio}} {{.Config.Cmd}}", "true 0.5 <no value>"),
        ("{{range .Mounts}}{{.Source}},{{end}}", "/a,/b,"),
        ("{{range $i, $m := .Mounts}}{{$i}}={{$m.Source}} {{end}}", "0=/a 1=/b "),
        ("{{range $m := .Mounts}}{{$m.Source}}{{$.Name}}{{end}}", "/a/base/b/base"),
        ("{{range $k, $v := .Config.Labels}}{{$k}}:{{$v}};{{end}}", "com.example/y:two;x:one;"),
        ("{{range .Config.Cmd}}x{{else}}none{{end}}", "none"),
        ("{{range .Mounts}}{{if .RW}}{{continue}}{{end}}{{.Source}}{{break}}{{end}}", "/b"),
        ('{{index .Config.Labels "x"}}', "one"),
        ('{{index .Config.Labels "none"}}', "<no value>"),
        ("{{.Config.Labels.none}}", "<no value>"),
        ("{{(index .Mounts 1).Source}}", "/b"),
        ('{{index .Mounts 0 "Source"}}', "/a"),
        ("{{$n := .Name}}{{index .Config.Labels `x`}}{{$n}}", "one/base"),
        ("{{$i := 1}}{{$i = 0}}{{index .Config.Env $i}}", "A=1"),
        ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
        ("{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}", "none"),
        ('{{if eq .State.Status "exited"}}a{{else if eq .Name "/base"}}b{{else}}c{{end}}', "b"),
        ("{{with .State}}{{.Pid}}{{end}}{{with .Config.Cmd}}x{{else}}y{{end}}", "17y"),
        ("{{len .Mounts}} {{len .Name}} {{len .Config.Cmd}}", "2 5 0"),
        ('{{join .Config.Env " "}}', "A=1 B=2"),
        ('{{.Config.Env | join ","}}', "A=1,B=2"),
        ('{{.Name | upper | printf "%q"}}', '"/BASE"'),
        ('{{upper "aB"}}{{lower "aB"}}{{title "one two"}}', "ABabOne Two"),
        ("{{println .Name}}", "/base\n"),
        ('{{print 1 2 "x" .Name}}', "1 2x/base"),
        ('{{printf "%s|%5d|%-4s|%03d" .Name 7 "a" 5}}', "/base|    7|a   |005"),
        ('{{printf "%v|%%|%t" .Config.Env true}}', "[A=1 B=2]|%|true"),
        ('{{printf "%d %s" 1}}', "1 %!s(MISSING)"),
        ("{{not .Config.Cmd}} {{and 1 0}} {{or 0 .Name}} {{and true .Name}}", "true 0 /base /base"),
        ("{{if and .State.Health .State.Health.Status}}x{{end}}", ""),
        ("{{eq 1 2 1}} {{ne 1 2}} {{lt 1 2}}", "true true true"),
        ("{{ge 2 2}} {{gt 1 2}} {{le 3 2}}", "true false false"),
        ("{{json .State}}", '{"Status":"running","Running":true,"Pid":17,"ExitCode":0}'),
        ('{{json .Config.Labels}} {{json .Name}}', '{"x":"one","com.example/y":"two"} "/base"'),
        ("{{.Config.Labels}}", "map[com.example/y:two x:one]"),
        ('{{.Label "x"}} {{.Size}} {{upper .Size}}', "label x 3MB 3MB"),
        ('{{slice .Name 1}} {{slice .Id 0 3}} {{truncate .Id 4}} {{pad "x" 1 2}}|', "base 012 0123  x  |"),
        ('{{split "a:b" ":"}} {{index (split "a:b" ":") 1}}', "[a b] b"),
        ("a {{- .Name -}}  b", "a/baseb"),
        ("{{/* a comment */}}x{{- /* another */ -}} y", "xy"),
        (r'{{"a\tb"}}', "a\tb"),
        ("{{`raw {{x}}`}}", "raw {{x}}"),
        ('{{"}}"}}', "}}"),
        ("{{true}} {{-3}} {{0x10}} {{1.5}} {{'a'}}", "true -3 16 1.5 97"),
        ("{{html `<a>`}} {{urlquery `a b`}}", "&lt;a&gt; a+b"),
    ],
)  # fmt: skip
def test_what_a_template_shows(template: str, text: str) -> None:
    assert Template(template).execute(DATA) == text


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{{.Nothing}}", "there is no field Nothing: use one of Id, Name, State"),
        ("{{.State.Stauts}}", "there is no field Stauts"),
        ("{{.State.Health.Status}}", "there is no field Status in Health, which has no value"),
        ("{{.Name.x}}", "can't evaluate field x in a str"),
        ("{{wrong .Name}}", 'function "wrong" not defined'),
        ("{{.Name", "unclosed action"),
        ('{{"}}', "unclosed action"),
        ("{{}}", "missing value for command"),
        ("{{if .Name}}", "an {{end}} is missing"),
        ("{{if}}x{{end}}", "missing value for command"),
        ("{{end}}", "unexpected {{end}}"),
        ("{{else}}", "unexpected {{else}}"),
        ("{{if .Name}}{{else}}{{else}}{{end}}", "unexpected {{else}}"),
        ("{{(.Name}}", "unclosed left paren"),
        ("{{.Name)}}", "unexpected ')'"),
        ("{{.Name | }}", "missing value for command"),
        ("{{$x}}", "undefined variable $x"),
        ("{{$x = 1}}", "undefined variable $x"),
        ("{{$x, }}", "missing value"),
        ("{{template `x`}}", "{{template}} is not supported"),
        ("{{define `x`}}{{end}}", "{{define}} is not supported"),
        ("{{range .Name}}{{end}}", "range can't iterate over /base"),
        ("{{range 1000000000}}{{end}}", "range can't iterate over"),
        ("{{index .Mounts 7}}", "index out of range: 7"),
        ("{{index .Mounts `a`}}", "cannot index with 'a'"),
        ("{{index .Config.Cmd 0}}", "index of nothing"),
        ("{{len 3}}", "len of '3'"),
        ("{{lt 1 `a`}}", "incompatible types"),
        ("{{eq 1}}", "missing argument for comparison"),
        ("{{upper}}", "wrong arguments"),
        ("{{slice .Name 9}}", "slice out of range"),
        ("{{.Name .Name}}", "can't give argument to non-function"),
        ("{{join .Name}}", "is no list"),
        ("{{@}}", "unexpected '@' in an action"),
        (r'{{"\q"}}', "malformed string"),
        ("{{and}}", "wrong number of args for and"),
        ("{{break}}", "break outside range"),
    ],
)
def test_a_wrong_template_is_one_line(template: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        Template(template).execute(DATA)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{if 1}}" * 5000,
        "{{if 1}}" * 5000 + "{{end}}" * 5000,
        "{{else if 1}}".join(["{{if 0}}", *[""] * 4000]) + "{{end}}",
        "{{" + "(" * 20000 + ")" * 20000 + "}}",
        "{{" * 30000,
        '{{"' + "a" * 60000,
        "{{" + '"' * 60001 + "}}",
        "{{/*" * 16000,
        "{{`" * 20000,
        "{{" + "." * 60000 + "}}",
        "{{" + ".a" * 30000 + "}}",
        "x" * 70000,
        '{{$x := "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}}' + "{{$x = print $x $x}}" * 3000,
        '{{pad "x" 1000000000 0}}',
        '{{printf "%1000000000d" 1}}',
        '{{printf "%.1000000000f" 1.5}}',
        "{{range .L}}" * 50 + "x" + "{{end}}" * 50,
        "{{range .L}}" * 20 + "{{end}}" * 20,
    ],
    ids=lambda text: text[:20],
)
def test_an_endless_template_ends(template: str) -> None:
    began = time.process_time()
    with pytest.raises(UsageError):
        Template(template).execute({"L": list(range(100)), "a": 1})
    assert time.process_time() - began < 10


@given(st.text(alphabet="{}().|$:=, \"'`-/*\\ifendrangwth.Name09%", max_size=60))
def test_any_text_is_shown_or_refused(text: str) -> None:
    try:
        shown = Template(text).execute(DATA)
    except UsageError as error:
        shown = str(error)
    assert isinstance(shown, str)


def test_headers_stand_for_what_functions_would_do() -> None:
    row = Template("{{upper .ID}}\t{{json .Names}}\t{{truncate .Image 3}}").execute(
        {"ID": "CONTAINER ID", "Names": "NAMES", "Image": "IMAGE"}, HEADERS
    )
    assert row == "CONTAINER ID\tNAMES\tIMAGE"
