//! Plans of many files, stages that exist once per value of an axis, and what every stage may say.

use std::time::Duration;

use crate::support::plan_text::{self, read};
use kiln::engine::select;
use kiln::plan::Plan;

const BEGIN: &str = "[plan]\nname = 'vase'\n";

/// Shared clay; pots by shape; wares by shape and glaze; one verdict a shape, and one for all.
const MATRIX: &str = r#"
[matrix]
shape = ["bowl", "cup"]
cone = [6, 9]
[tools]
oven = { pypi = "oven==1", sha256 = "" }
[stage.verdict]
kind = "judge"
wares = "ware"
across = ["cone"]
marks = { ware = 3, "ware.cup.9" = 5 }
[stage.all]
kind = "judge"
wares = ["ware", "plain"]
across = ["cone", "shape"]
[stage.ware]
kind = "fire"
pot = "pot"
cone = "${cone}"
[stage.pot]
kind = "throw"
clay = "clay"
override = [{ part = "${shape}", glaze = "celadon" }]
[stage.plain]
kind = "fire"
pot = "blank"
cone = 1
[stage.blank]
kind = "throw"
clay = "clay"
[stage.clay]
kind = "fetch"
url = "https://clay"
"#;

fn outline(plan: &Plan) -> String {
    let line = |stage: &kiln::plan::PlannedStage| {
        let waits: Vec<&str> = stage
            .slots
            .values()
            .flatten()
            .map(|id| id.0.as_str())
            .collect();
        format!("{} {} [{}]\n", stage.id, stage.params, waits.join(" "))
    };
    plan.stages
        .iter()
        .filter(|stage| stage.tools.is_empty() || stage.kind != "fetch")
        .map(line)
        .collect()
}

fn matrix(text: &str, sets: &[(&str, &str)]) -> Plan {
    read(&[("test.toml", &format!("{BEGIN}{text}"))], sets).unwrap()
}

fn problems(text: &str) -> String {
    plan_text::problems(&[("test.toml", &format!("{BEGIN}{text}"))], &[])
}

#[test]
fn a_stage_has_one_instance_per_value_of_its_axes() {
    assert_eq!(
        outline(&matrix(MATRIX, &[])),
        r#"tools.oven {"sha256":"","unpack":true,"url":"pypi:oven==1"} []
clay {"url":"https://clay"} []
pot.bowl {"override":[{"glaze":"celadon","part":"bowl"}]} [clay]
ware.bowl.6 {"cone":6} [pot.bowl]
ware.bowl.9 {"cone":9} [pot.bowl]
verdict.bowl {"marks":{"ware.bowl.6":3,"ware.bowl.9":3}} [ware.bowl.6 ware.bowl.9]
pot.cup {"override":[{"glaze":"celadon","part":"cup"}]} [clay]
ware.cup.6 {"cone":6} [pot.cup]
ware.cup.9 {"cone":9} [pot.cup]
verdict.cup {"marks":{"ware.cup.6":3,"ware.cup.9":5}} [ware.cup.6 ware.cup.9]
blank {} [clay]
plain {"cone":1} [blank]
all {} [ware.bowl.6 ware.bowl.9 ware.cup.6 ware.cup.9 plain]
"#
    );
}

#[test]
fn an_axis_can_be_set_to_any_value() {
    let ids = |sets: &[(&str, &str)]| {
        let plan = matrix(MATRIX, sets);
        plan.stages
            .iter()
            .filter(|stage| stage.kind == "fire")
            .map(|stage| stage.id.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        ids(&[("shape", "jar"), ("cone", "7")]),
        ["ware.jar.7", "plain"]
    );
    let told = |sets| plan_text::problems(&[("test.toml", &format!("{BEGIN}{MATRIX}"))], sets);
    assert_eq!(
        told(&[("cone", "hot")]),
        "wrong_type: --set cone=hot: expected an integer\n  \"cone\" an integer here\n  help: \
         the value must have the type that it has in the plan\n"
    );
    assert!(
        told(&[("shape", "a/b")]).starts_with(
            "bad_name: --set shape=a/b: the value of an axis becomes a part of names\n"
        )
    );
}

#[test]
fn the_plan_name_refers_to_all_instances() {
    let chosen = |wanted: &[&str]| {
        let wanted: Vec<String> = wanted.iter().map(|name| name.to_string()).collect();
        select(matrix(MATRIX, &[]), &wanted).map(|plan| {
            plan.stages
                .iter()
                .map(|stage| stage.id.to_string())
                .collect()
        })
    };
    assert_eq!(
        chosen(&["pot", "pot"]),
        Ok(vec![
            "clay".to_string(),
            "pot.bowl".into(),
            "pot.cup".into()
        ])
    );
    assert_eq!(
        chosen(&["pot.cup"]),
        Ok(vec!["clay".to_string(), "pot.cup".into()])
    );
    assert!(chosen(&["pot.jar"]).is_err());
}

#[test]
fn a_reference_can_follow_an_axis() {
    let plan = matrix(
        "[matrix]\nfrom = ['red', 'white']\n[stage.pot]\nkind = 'throw'\nclay = \
         '${from}'\n[stage.red]\nkind = 'fetch'\nurl = 'r'\n[stage.white]\nkind = 'fetch'\nurl = \
         'w'\n",
        &[],
    );
    assert_eq!(
        outline(&plan),
        "red {\"url\":\"r\"} []\npot.red {} [red]\nwhite {\"url\":\"w\"} []\npot.white {} \
         [white]\n"
    );
}

#[test]
fn matrix_mistakes_are_reported() {
    assert_eq!(
        problems(
            r#"
[vars]
shop = "x"
[matrix]
shop = ["y"]
idle = ["a"]
none = []
one = 1
odd = ["A b", 1, "1", [2]]
[tools]
oven = { pypi = "oven==${odd}" }
[stage.clay]
kind = "fetch"
url = "${shop}"
across = ["odd"]
"#
        ),
        r#"defined_twice: `shop` is both a variable and an axis
  "shop" here
  "shop" and here
  help: remove one of them, or define it in the file that includes both
unused_variable: nothing uses the axis `idle`
  "idle" set here
  help: write `${idle}` where it belongs, or remove it
wrong_type: the axis `none` is an empty list
  "[]" expected a list of strings, numbers or booleans
wrong_type: the axis `one` is an integer
  "1" expected a list of strings, numbers or booleans
bad_name: `A b` cannot be a value of an axis: it becomes a part of names
  "\"A b\"" here
  help: a name is lower-case letters, digits, `.`, `_` and `-`, and begins with a letter or digit
matrix: the axis `odd` has `1` twice
  "1" here
  "\"1\"" and here
  help: remove one of them
wrong_type: the axis `odd` has a list
  "[2]" expected a string, number or boolean
axis: the axis `odd` has no single value here
  "${odd}" here
  help: only a stage that is not `across` the axis can use it: all else exists once
matrix: `clay` cannot be `across` an axis: `fetch` takes one stage in each input
  "across" here
  help: remove `across`
"#
    );
}

#[test]
fn gathering_mistakes_are_reported_once_for_all_instances() {
    assert_eq!(
        problems(
            r#"
[matrix]
cone = [6, 9]
[tools]
oven = { pypi = "oven==1" }
[stage.a]
kind = "judge"
wares = ["ware", "wear"]
across = ["cone", "cnoe", "shape"]
best = "ware"
[stage.b]
kind = "judge"
wares = ["plain"]
across = ["cone"]
marks = { wear = 1 }
[stage.c]
kind = "judge"
wares = ["ware"]
marks = { ware = "${cone}", plain = 2 }
[stage.plain]
kind = "fire"
cone = 1
[stage.ware]
kind = "fire"
pot = "clay"
cone = "${cone}"
[stage.clay]
kind = "fetch"
url = "x"
[stage."ware.6"]
kind = "fetch"
url = "x"
"#
        ),
        r#"unknown_stage: there is no stage `wear`
  "\"wear\"" here
  help: did you mean `ware`?
matrix: `a.across`: there is no axis `cnoe`
  "\"cnoe\"" here
  help: did you mean `cone`?
matrix: `a.across`: there is no axis `shape`
  "\"shape\"" here
  help: axes: `cone`
matrix: `a.best` takes one stage, `ware` is 2
  "\"ware\"" one for each value
  help: `across` gathers only where an input takes many: `best` does not
matrix: no input of `b` exists once per `cone`
  "\"cone\"" nothing to gather
unknown_stage: `b.marks` has `wear`, which is not in `wares`
  "wear" here
  help: stages of `wares`: `plain`
unknown_stage: `c.marks` has `plain`, which is not in `wares`
  "plain" here
  help: stages of `wares`: `ware`
missing_input: `plain` needs the input `pot`
  "plain" this stage
  help: write `pot = "..."`; `pot` or `ware` is the output of `plain`, `ware`
wrong_artifact: `ware.pot` takes `pot` or `ware`, but `clay` outputs `clay`
  "\"clay\"" outputs `clay`
  help: `pot` or `ware` is the output of `plain`, `ware`
matrix: two stages would be called `ware.6`
  "\"ware.6\"" this stage
  "ware" and this stage
  help: give one of them, or a value of the matrix, another name
"#
    );
}

#[test]
fn invalid_values_are_reported_with_plan_names() {
    assert_eq!(
        problems(
            "[matrix]\nglaze = ['celadon', 'blue', 'green']\n[stage.clay]\nkind = 'fetch'\nurl = \
             'x'\n[stage.pot]\nkind = 'throw'\nclay = 'clay'\nhight = 1\noverride = [{ part = \
             'lip', glaze = '${glaze}' }]\n"
        ),
        r#"unknown_parameter: a stage of kind `throw` has no `hight`
  "hight" here
  help: did you mean `height`?
parameter: `pot.override.0.glaze`: expected `celadon` or `ox-blood`, found `blue`
  "'${glaze}'" here
parameter: `pot.override.0.glaze`: expected `celadon` or `ox-blood`, found `green`
  "'${glaze}'" here
"#
    );
}

#[test]
fn rows_for_stages_and_instances_are_distinguished() {
    let told = |marks: &str| problems(&MATRIX.replace("ware = 3, \"ware.cup.9\" = 5", marks));
    assert_eq!(
        told("ware = -3, \"ware.cup.9\" = 5, \"ware.jar.9\" = 1"),
        r#"parameter: `verdict.marks.ware`: expected an integer of at least 0, found -3
  "-3" here
unknown_stage: `verdict.marks` has `ware.jar.9`, which is not in `wares`
  "\"ware.jar.9\"" here
  help: stages of `wares`: `ware`
"#
    );
    assert_eq!(
        told("ware = 3, \"ware.cup.9\" = -5"),
        "parameter: `verdict.marks.ware.cup.9`: expected an integer of at least 0, found -5\n  \
         \"-5\" here\n"
    );
}

#[test]
fn instances_count_as_stages() {
    let values: Vec<String> = (0..32).map(|value| value.to_string()).collect();
    let text = format!(
        "[matrix]\na = [{0}]\nb = [{0}]\n[stage.clay]\nkind = 'fetch'\nurl = '${{a}}${{b}}'\n",
        values.join(",")
    );
    assert!(
        problems(&text)
            .starts_with("too_large: the plan has 1024 stages and tools, at most 1000 are built\n")
    );
}

const COMMON: &str = r#"
include = ["clay/clay.toml"]
[vars]
shape = "bowl"
cone = 6
[tools]
oven = { url = "file:oven.whl" }
[stage.ware]
kind = "fire"
pot = "pot"
cone = "${cone}"
[stage.pot]
kind = "throw"
clay = "clay"
override = [{ part = "${shape}", glaze = "celadon" }]
"#;

const CLAY: &str = "[vars]\npit = 'file:red'\n[stage.clay]\nkind = 'fetch'\nurl = \
                    '${pit}'\n[stage.sand]\nkind = 'fetch'\nurl = 'file:sand'\n";

#[test]
fn an_included_file_provides_stages_and_defaults() {
    let plan = "include = ['lib/common.toml']\n[plan]\nname = 'vase'\n[vars]\ncone = \
                9\n[matrix]\nshape = ['cup', 'jar']\n";
    let files = [
        ("plan.toml", plan),
        ("lib/common.toml", COMMON),
        ("lib/clay/clay.toml", CLAY),
    ];
    assert_eq!(
        outline(&read(&files, &[]).unwrap()),
        r#"tools.oven {"unpack":true,"url":"file:/plans/lib/oven.whl"} []
clay {"url":"file:/plans/lib/clay/red"} []
sand {"url":"file:/plans/lib/clay/sand"} []
pot.cup {"override":[{"glaze":"celadon","part":"cup"}]} [clay]
ware.cup {"cone":9} [pot.cup]
pot.jar {"override":[{"glaze":"celadon","part":"jar"}]} [clay]
ware.jar {"cone":9} [pot.jar]
"#
    );
    let own = format!("{plan}pit = ['a']\n")
        .replace("[matrix]", "pit = 'file:own'\n[matrix]")
        .replace("pit = ['a']\n", "");
    let plan = read(&[("plan.toml", &own), files[1], files[2]], &[]).unwrap();
    assert_eq!(
        plan.stages[1].params["url"], "file:/plans/own",
        "a value starts from the file that says it"
    );
}

#[test]
fn include_mistakes_are_reported() {
    let plan =
        "include = ['a.toml', 'a.toml', './c/../b.toml', 'gone.toml', 1]\n[plan]\nname = 'vase'\n";
    let a = "include = ['b.toml', 'plan.toml']\n[stage.clay]\nkind = 'fetch'\nurl = 'x'\n";
    let b = "include = ['a.toml']\n";
    assert_eq!(
        plan_text::problems(&[("plan.toml", plan), ("a.toml", a), ("b.toml", b)], &[]),
        r#"include: `a.toml` is included twice
  "'a.toml'" here
  "'a.toml'" and here
  help: keep one of them: all files of a plan see what a file defines
include: `b.toml` is included twice
  "'./c/../b.toml'" here
  a.toml: "'b.toml'" and here
  help: keep one of them: all files of a plan see what a file defines
unreadable: no /plans/gone.toml
  "'gone.toml'" included here
wrong_type: `include` has an integer, expected a list of paths
  "1" expected a list of paths
  help: for example `include = ["common.toml"]`
include: `plan.toml` includes itself
  a.toml: "'plan.toml'" here
  help: move what both need into a file of its own
include: `a.toml` includes itself
  b.toml: "'a.toml'" here
  help: move what both need into a file of its own
"#
    );
}

#[test]
fn a_duplicate_definition_is_shown_in_both_files() {
    let plan = "include = ['a.toml', 'b.toml']\n[plan]\nname = 'vase'\n[vars]\nz = \
                1\n[stage.clay]\nkind = 'fetch'\nurl = '${x}${z}'\n";
    let a = "[plan]\nname = 'no'\n[vars]\nx = 1\nz = 1\n[stage.clay]\nkind = 'fetch'\nurl = 'a'\n";
    let b = "[vars]\nx = 2\nz = 2\n[stage.pot]\nkind = 'throw'\nclay = 'caly'\n";
    assert_eq!(
        plan_text::problems(&[("plan.toml", plan), ("a.toml", a), ("b.toml", b)], &[]),
        r#"unused_variable: nothing uses the variable `z`
  "z" set here
  help: write `${z}` where it belongs, or remove it
defined_twice: the stage `clay` is defined twice
  "clay" here
  a.toml: "clay" and here
  help: give one of them another name, or remove it
include: an included file has no `[plan]`
  a.toml: "plan" here
  help: the plan that includes it has the name: move what both need into a file of its own
unused_variable: nothing uses the variable `x`
  a.toml: "x" set here
  help: write `${x}` where it belongs, or remove it
defined_twice: `x` is defined twice
  b.toml: "x" here
  a.toml: "x" and here
  help: remove one of them, or define it in the file that includes both
unknown_stage: there is no stage `caly`
  b.toml: "'caly'" here
  help: did you mean `clay`?
"#
    );
}

#[test]
fn invalid_toml_is_reported_alone() {
    let plan =
        "include = ['a.toml']\n[plan]\nname = 'vase'\n[stage.pot]\nkind = 'throw'\nclay = 'clay'\n";
    assert_eq!(
        plan_text::problems(&[("plan.toml", plan), ("a.toml", "[stage.clay")], &[]),
        r#"syntax: not valid TOML: unclosed table, expected `]`
  a.toml: "" here
"#
    );
    let half = "#".repeat(600_000);
    let (plan, half) = (format!("{plan}{half}"), half.as_str());
    let told = plan_text::problems(&[("plan.toml", &plan), ("a.toml", half)], &[]);
    assert!(told.starts_with("too_large: the plan has 1200"), "{told}");
}

#[test]
fn every_stage_accepts_a_timeout_and_external_stages_accept_retries() {
    let text = |clay: &str| {
        format!(
            "[stage.clay]\nkind = 'fetch'\nurl = 'x'\n{clay}\n[stage.pot]\nkind = 'throw'\nclay = \
             'clay'\n"
        )
    };
    let plan = matrix(&text("timeout = '20min'\nretries = 3"), &[]);
    assert_eq!(
        (plan.stages[0].timeout, plan.stages[0].retries),
        (Some(Duration::from_secs(1200)), 3)
    );
    assert_eq!((plan.stages[1].timeout, plan.stages[1].retries), (None, 0));
    assert_eq!(
        plan.stages[0].params,
        serde_json::json!({"url": "x"}),
        "they are no parameters, and so in no key"
    );
    let expected = "expected a time like \"90s\", \"20min\" or \"2h\", at most 1000h";
    for wrong in ["90", "0s", "1001h", "-1s", "h", "99999999999999999999s"] {
        let told = problems(&text(&format!("timeout = '{wrong}'")));
        assert_eq!(
            told,
            format!(
                "wrong_type: `clay.timeout` is a string, {expected}\n  \"'{wrong}'\" {expected}\n"
            )
        );
    }
    assert_eq!(
        problems(&text("retries = 101").replace("kind = 'throw'", "kind = 'throw'\nretries = 1")),
        r#"wrong_type: `clay.retries` is an integer, expected a number from 0 to 100
  "101" expected a number from 0 to 100
unknown_parameter: a stage of kind `throw` has no `retries`
  "retries" here
  help: only kinds that use the network or a device are retried; remove it
"#
    );
}

/// The stages that a bad value names are not complained of too.
#[test]
fn an_invalid_value_is_reported_once() {
    let text =
        "[matrix]\nkiln = ['Big', 'small']\n[stage.clay]\nkind = 'fetch'\nurl = 'file:${kiln}'\n";
    let problems = plan_text::problems(&[("plan.toml", &format!("{BEGIN}{text}"))], &[]);
    assert_eq!(problems.matches("bad_name").count(), 1, "{problems}");
}
