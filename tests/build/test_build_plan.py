"""Which stages a build needs, and what it says of stages that cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from layerfs.build.plan import Plan, plan
from layerfs.dockerfile import parser
from layerfs.dockerfile.configure import Configuration
from layerfs.dockerfile.instructions import Copy, Run
from layerfs.errors import BadRequest
from layerfs.oci import platforms


def planned(
    text: str,
    target: str | None = None,
    args: Mapping[str, str] | None = None,
    *,
    platform: str | None = None,
    triggers: Mapping[int, Sequence[str]] | None = None,
) -> Plan:
    return plan(parser.parse(text.encode()), target, args, platform=platform, triggers=triggers)


DIAMOND = """FROM base AS first
RUN a
FROM first AS left
RUN b
FROM first AS right
RUN c
FROM unneeded AS lonely
FROM scratch AS last
COPY --from=left /x /y
RUN --mount=from=right,target=/m --mount=type=cache,target=/c d
COPY --from=0 /x /y
COPY --from=other:1 /x /y
COPY . /
"""


def test_only_what_the_target_needs_is_built_and_in_order() -> None:
    found = planned(DIAMOND)
    assert [stage.index for stage in found.stages] == [0, 1, 2, 4]
    last = found.stage(4)
    assert found.target == 4
    assert last.needs == {0, 1, 2}
    assert last.sources == {"left": 1, "right": 2, "0": 0, "other:1": "other:1"}
    assert last.images == ("other:1",)
    assert (last.base, last.image, last.name) == (None, "scratch", "last")
    assert found.stage(1).base == 0
    assert found.stage(1).images == ()
    assert found.stage(0).images == ("base",)
    with pytest.raises(KeyError):
        found.stage(3)


@pytest.mark.parametrize(
    ("target", "indices"), [("left", [0, 1]), ("LEFT", [0, 1]), ("2", [0, 2]), ("lonely", [3])]
)
def test_a_target_by_name_or_number(target: str, indices: list[int]) -> None:
    found = planned(DIAMOND, target)
    assert [stage.index for stage in found.stages] == indices
    assert found.target == indices[-1]
    assert found.args["TARGETSTAGE"] == ("left" if target == "LEFT" else found.stages[-1].name)


def test_a_stage_without_a_name_is_called_by_its_number() -> None:
    (stage,) = planned("FROM a").stages
    assert stage.name == "stage-0"


@pytest.mark.parametrize(
    ("text", "target", "says"),
    [
        (DIAMOND, "rigth", "target stage 'rigth' could not be found: did you mean right?"),
        (DIAMOND, "qqqq", "expected one of first, left"),
        ("FROM a", "x", "expected one of 0 to 0: stages have no names"),
        ("FROM a", "1", "could not be found"),
        ("FROM a\nCOPY --from=2 x /y", None, "Dockerfile:2: there is no stage 2: expected one of 0 to 0"),
        ("FROM a\nCOPY --from=0 x /y", None, "Dockerfile:2: stage '0' cannot copy from itself"),
        ("FROM a AS b\nCOPY --from=B x /y", None, "Dockerfile:2: stage 'B' cannot copy from itself"),
        ("FROM a\nCOPY --from=b x /y\nFROM c AS b", "0", "Dockerfile:2: stage 'b' comes only later"),
        (
            "FROM a\nRUN --mount=from=b,target=/c x\nFROM c AS b",
            "0",
            "Dockerfile:2: stage 'b' comes only later",
        ),
        (
            "FROM a AS one\nCOPY --from=two x /y\nFROM one AS two",
            None,
            "Dockerfile:2: stage 'two' needs this one, and this one it: break the circle",
        ),
        (
            "FROM a AS one\nCOPY --from=three x /y\nFROM b AS two\nCOPY --from=0 x /y\nFROM two AS three",
            None,
            "Dockerfile:2: stage 'three' needs this one, and this one it: break the circle",
        ),
        ("ARG A\nFROM $A", None, "Dockerfile:2: FROM $A names no image"),
        ("FROM ${A:?give-it}", None, "Dockerfile:1: A: give-it"),
        ("FROM --platform=$A b", None, "Dockerfile:1: --platform=$A is empty"),
        ("FROM --platform=a/b/c/d b", None, "Dockerfile:1: 'a/b/c/d' is no platform"),
    ],
)
def test_stages_that_cannot_be(text: str, target: str | None, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        planned(text, "one" if "circle" in says else target)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_a_stage_nobody_needs_is_not_looked_at() -> None:
    found = planned("FROM a AS one\nCOPY --from=later x /y\nFROM b AS two\nFROM c AS later", "two")
    assert [stage.index for stage in found.stages] == [1]


def test_names_are_those_of_the_last_stage_before() -> None:
    found = planned("FROM a AS x\nFROM x AS x\nFROM x\nCOPY --from=x y /z\nFROM b AS x", "2")
    assert [(stage.index, stage.base) for stage in found.stages] == [(0, None), (1, 0), (2, 1)]
    assert found.stage(2).sources == {"x": 1}
    assert found.warnings == ("Dockerfile:5: a stage before is called x, too: give it another name",)


def test_a_stage_may_be_called_as_its_image() -> None:
    (stage,) = planned("FROM debian AS debian").stages
    assert (stage.base, stage.image) == (None, "debian")


def test_args_before_from_use_each_other_and_the_platform() -> None:
    text = "ARG A=1 B=$A-2\nARG C=$TARGETARCH D\nFROM --platform=$BUILDPLATFORM x:$B-$C-$D AS ${X}"
    text = text.replace("${X}", "y")
    here = platforms.parse(None)
    found = planned(text, None, {"A": "9", "D": "d", "TARGETVARIANT": "v7"}, platform="linux/arm/v6")
    (stage,) = found.stages
    assert (stage.image, stage.platform) == ("x:9-2-arm-d", str(here))
    assert found.args["B"] == "9-2"
    assert (found.args["TARGETPLATFORM"], found.args["TARGETVARIANT"]) == ("linux/arm/v6", "v7")
    assert (found.args["BUILDARCH"], found.args["TARGETOS"]) == (here.architecture, "linux")


def test_args_in_a_stage_do_not_reach_from() -> None:
    with pytest.raises(BadRequest, match="names no image"):
        planned("FROM a\nARG B=c\nFROM $B")


def test_build_arguments_that_nothing_names_are_told_of() -> None:
    given = dict.fromkeys(
        (
            "A",
            "B",
            "C",
            "BUILD_ID",
            "HTTP_PROXY",
            "no_proxy",
            "TARGETARCH",
            "SOURCE_DATE_EPOCH",
            "BUILDKIT_X",
        ),
        "1",
    )
    assert planned("ARG A\nFROM a\nFROM b\nARG B", None, given).unused == ("C", "BUILD_ID")


def test_triggers_of_a_stage_run_first_in_what_is_from_it() -> None:
    text = (
        "FROM a AS one\nONBUILD RUN first\nONBUILD COPY --from=tools x /y\nFROM b AS tools\n"
        "FROM one AS two\nRUN own\nFROM two\nRUN last"
    )
    found = planned(text)
    two = found.stage(2)
    assert two.triggers == 2
    assert [each.text for each in two.instructions] == ["RUN first", "COPY --from=tools x /y", "RUN own"]
    assert two.needs == {0, 1}
    assert found.stage(0).triggers == found.stage(3).triggers == 0


def test_triggers_of_an_image_can_need_more() -> None:
    text = "FROM x AS tools\nFROM a\nRUN own"
    assert [stage.index for stage in planned(text).stages] == [1]
    found = planned(text, triggers={1: ["COPY --from=tools x /y", "RUN --mount=from=img,target=/m y"]})
    assert [stage.index for stage in found.stages] == [0, 1]
    last = found.stage(1)
    assert [type(each) for each in last.instructions] == [Copy, Run, Run]
    assert last.images == ("a", "img")
    with pytest.raises(
        BadRequest, match=r"^Dockerfile:2: ONBUILD of a:1:1: ONBUILD cannot be followed by FROM"
    ):
        planned(text, triggers={1: ["FROM x"]})


def test_triggers_are_not_without_end() -> None:
    text = "FROM a AS b\n" + "ONBUILD RUN x\n" * 1001 + "FROM b"
    with pytest.raises(BadRequest, match=r"^Dockerfile:1003: b has more than 1000 ONBUILD"):
        planned(text)


def test_a_thousand_stages_in_a_row() -> None:
    text = "FROM a AS s0\n" + "".join(
        f"FROM s{n} AS s{n + 1}\nCOPY --from=s{n // 2} x /y\n" for n in range(999)
    )
    assert len(planned(text).stages) == 1000


def test_errors_are_short_and_of_one_line() -> None:
    for text in (
        "FROM a\nCOPY --from=" + "9" * 100_000 + " b /c",
        "FROM a\nFROM b AS " + "c" * 100_000 + "\nCOPY --from=" + "c" * 100_000 + " b /c",
        "FROM --platform=" + "a/" * 100_000 + " b",
        "ARG A=b\nFROM ${C:?" + "d" * 100_000 + "}",
    ):
        with pytest.raises(BadRequest) as caught:
            planned(text)
        assert len(str(caught.value)) < 350
    stage = Configuration({"Env": ["A=b\nc"]})
    (copy,) = parser.parse(b"FROM a\nCOPY a ${B:?$A}").stages[0].instructions
    assert isinstance(copy, Copy)
    with pytest.raises(BadRequest, match=r"^Dockerfile:2: B: b c: give it"):
        stage.expand_copy(copy)
