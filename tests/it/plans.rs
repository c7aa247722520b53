//! Plan text in; plan, or all its problems, out.

use crate::support::plan_text;
use kiln::base::Problem;
use kiln::plan::{self, Keep, Plan};

fn read(text: &str, sets: &[(&str, &str)]) -> Result<Plan, Vec<Problem>> {
    plan_text::read(&[("test.toml", text)], sets)
}

/// Puts a good beginning before `text`; see [`plan_text::problems`].
fn problems(text: &str) -> String {
    problems_with(text, &[])
}

fn problems_with(text: &str, sets: &[(&str, &str)]) -> String {
    plan_text::problems(
        &[("test.toml", &format!("[plan]\nname = \"vase\"\n{text}"))],
        sets,
    )
}

const VASE: &str = r#"
[plan]
name = "vase"
[vars]
cone = 6
shop = "clay.example"
[tools]
oven = { pypi = "oven==1.0", sha256 = "ab" }
wheel = { url = "file:wheel.whl", sha256 = "cd" }
[stage.ware]
kind = "fire"
pot = "pot"
cone = "${cone}"
[stage.pot]
kind = "throw"
clay = "clay"
[stage.clay]
kind = "fetch"
keep = true
url = "https://${shop}/red$${x}"
"#;

fn outline(plan: &Plan) -> String {
    let line = |stage: &plan::PlannedStage| {
        let waits: Vec<&str> = stage.dependencies().map(|id| id.0.as_str()).collect();
        format!(
            "{} {} {} [{}]{}\n",
            stage.id,
            stage.kind,
            stage.params,
            waits.join(" "),
            if stage.keep == Keep::All { " keep" } else { "" }
        )
    };
    plan.stages.iter().map(line).collect()
}

#[test]
fn stages_are_sorted_topologically() {
    let plan = read(VASE, &[]).unwrap();
    assert_eq!(plan.name, "vase");
    assert_eq!(
        outline(&plan),
        r#"tools.oven fetch {"sha256":"ab","unpack":true,"url":"pypi:oven==1.0"} []
clay fetch {"url":"https://clay.example/red${x}"} [] keep
pot throw {} [clay]
ware fire {"cone":6} [pot tools.oven] keep
"#
    );
}

#[test]
fn variables_can_be_set_and_keep_their_type() {
    let plan = read(VASE, &[("cone", "9"), ("shop", "1")]).unwrap();
    assert_eq!(plan.stages[3].params["cone"], 9);
    assert_eq!(plan.stages[1].params["url"], "https://1/red${x}");
}

#[test]
fn relative_files_are_resolved_from_the_plan_folder() {
    let plan = read(
        "[plan]\nname = \"a\"\n[stage.a]\nkind = \"fetch\"\nurl = \"file:data/x\"",
        &[],
    )
    .unwrap();
    assert_eq!(plan.stages[0].params["url"], "file:/plans/data/x");
    let plan = read(
        "[plan]\nname = \"a\"\n[stage.a]\nkind = \"fetch\"\nurl = \"file:/x\"",
        &[],
    )
    .unwrap();
    assert_eq!(plan.stages[0].params["url"], "file:/x");
}

#[test]
fn keep_selects_what_is_written() {
    let keep = |value: &str| {
        let text =
            format!("[plan]\nname = 'a'\n[stage.a]\nkind = 'fetch'\nurl = 'x'\nkeep = {value}");
        read(&text, &[]).unwrap().stages[0].keep.clone()
    };
    assert_eq!(keep("false"), Keep::Nothing);
    let some = keep("['summary.txt', 'tensors']");
    let taken = [
        "summary.txt",
        "tensors/a/b",
        "tensors",
        "tensors2",
        "summary",
        "model.json",
    ]
    .map(|part| some.takes(part));
    assert_eq!(taken, [true, true, true, false, false, false]);
}

#[test]
fn all_problems_are_reported_at_once() {
    assert_eq!(
        problems(
            r#"
[stage.clay]
kind = "fech"
[stage.pot]
kind = "throw"
clay = "caly"
hight = 3
wall = "thin"
[stage.ware]
kind = "fire"
pot = "pot"
cone = 6
"#
        ),
        r#"unknown_kind: there is no stage kind `fech`
  "\"fech\"" here
  help: did you mean `fetch`?
unknown_stage: there is no stage `caly`
  "\"caly\"" here
  help: did you mean `clay`?
unknown_parameter: a stage of kind `throw` has no `hight`
  "hight" here
  help: did you mean `height`?
wrong_type: `pot.wall`: expected a number, found the string "thin"
  "\"thin\"" here
missing_tool: `ware` of kind `fire` needs the tool `oven`
  "ware" this stage
  help: add it to [tools]: `oven = { pypi = "...", sha256 = "..." }`
"#
    );
}

#[test]
fn a_syntax_error_is_reported_alone() {
    assert_eq!(
        problems("[stage.clay]\nkind = \nurl = 'x'\nurl = 'y'\nwhen = 2024-01-01\n"),
        r#"syntax: not valid TOML: string values must be quoted, expected literal string
  "" here
syntax: not valid TOML: duplicate key
  "url" here
syntax: a plan cannot have a date
  "2024-01-01" a date
  help: if it is meant as text, write it between quotes
"#
    );
}

#[test]
fn top_level_tables_and_names_are_checked() {
    assert_eq!(
        problems(
            "nam = 1\n[stages.a]\n[stage.Pot]\nkind = \"throw\"\nclay = \
             \"tools.x\"\n[stage.\"tools.x\"]\nkind = \"fetch\"\nurl = ''"
        ),
        r#"unknown_key: [plan] has no `nam`
  "nam" here
  help: [plan] has only `name`
unknown_key: a plan has no `stages`
  "stages" here
  help: did you mean `stage`?
bad_name: `Pot` cannot name a stage
  "Pot" here
  help: a name is lower-case letters, digits, `.`, `_` and `-`, and begins with a letter or digit
unknown_stage: there is no stage `tools.x`
  "\"tools.x\"" here
  help: stages: `Pot`
bad_name: `tools.x` cannot name a stage
  "\"tools.x\"" here
  help: names that begin with `tools.` are for the tools in [tools]
"#
    );
}

#[test]
fn a_plan_needs_a_name() {
    let codes = |text: &str| -> Vec<String> {
        read(text, &[])
            .unwrap_err()
            .into_iter()
            .map(|p| p.message)
            .collect()
    };
    assert_eq!(codes(""), ["the plan has no [plan] table"]);
    assert_eq!(codes("[plan]"), ["the plan has no name"]);
    assert_eq!(
        codes("[plan]\nname = 1"),
        ["`name` is an integer, expected a string"]
    );
    assert_eq!(
        codes("[plan]\nname = \"../x\""),
        ["`../x` cannot name a plan"]
    );
}

#[test]
fn slots_accept_only_matching_artifacts() {
    assert_eq!(
        problems(
            r#"
[tools]
oven = { pypi = "oven==1" }
[stage.clay]
kind = "fetch"
url = ""
[stage.ware]
kind = "fire"
cone = 1
pot = "clay"
[stage.pot]
kind = "throw"
[stage.verdict]
kind = "judge"
wares = ["ware", 1, "clay"]
[stage.other]
kind = "throw"
clay = ["clay"]
"#
        ),
        r#"wrong_artifact: `ware.pot` takes `pot` or `ware`, but `clay` outputs `clay`
  "\"clay\"" outputs `clay`
  help: `pot` or `ware` is the output of `ware`, `pot`, `other`
missing_input: `pot` needs the input `clay`
  "pot" this stage
  help: write `clay = "..."`; `clay` is the output of `clay`
wrong_type: `verdict.wares` is an integer, expected the names of stages
  "1" expected the names of stages
wrong_artifact: `verdict.wares` takes `ware`, but `clay` outputs `clay`
  "\"clay\"" outputs `clay`
  help: `ware` is the output of `ware`
wrong_type: `other.clay` is a list, expected the name of a stage
  "[\"clay\"]" expected the name of a stage
"#
    );
}

#[test]
fn every_wrong_parameter_is_reported_with_its_span() {
    assert_eq!(
        problems(
            r#"
[stage.clay]
kind = "fetch"
url = 3
sha256 = "xyz"
keep = "yes"
[stage.pot]
kind = "throw"
clay = "clay"
height = -1
wall = true
[[stage.pot.override]]
part = "lip"
glaze = "celadon"
[[stage.pot.override]]
part = "foot"
glaze = "ox-blod"
[stage.cup]
kind = "throw"
clay = "clay"
override = [{ part = "lip", glaz = "celadon" }]
"#
        ),
        r#"wrong_type: `clay.url`: expected a string, found 3
  "3" here
wrong_type: `clay.keep` is a string, expected true, false or a list of parts
  "\"yes\"" expected true, false or a list of parts
parameter: `pot.height`: expected an integer of at least 0, found -1
  "-1" here
wrong_type: `pot.wall`: expected a number, found true
  "true" here
parameter: `pot.override.1.glaze`: expected `celadon` or `ox-blood`, found `ox-blod`
  "\"ox-blod\"" here
  help: did you mean `ox-blood`?
unknown_parameter: `cup.override.0.glaz`: there is no such key
  "glaz" here
  help: did you mean `glaze`?
"#
    );
}

#[test]
fn problems_from_a_stage_check_have_spans() {
    assert_eq!(
        problems(
            "[tools]\noven = { pypi = 'oven==1', sha256 = 'xyz' }\n[stage.clay]\nkind = 'fetch'\n"
        ),
        r#"parameter: `tools.oven.sha256`: not hexadecimal
  "'xyz'" here
  help: 64 hexadecimal digits
missing_parameter: `clay.url`: missing, expected a string
  "clay" this stage
"#
    );
}

#[test]
fn a_tool_has_one_source() {
    assert_eq!(
        problems("[tools]\na = { pipy = 'x' }\nb = { pypi = 'x', url = 'y' }\nc = 'x'\n"),
        r#"tool_source: the tool `a` needs `pypi`, `url` or `sdk`
  "a" this tool
  help: for example `pypi = "onnxruntime==1.32.0"`, `url` with the address of a wheel, or `sdk` with the folder of Qualcomm's SDK
unknown_key: a tool has no `pipy`
  "pipy" here
  help: did you mean `pypi`?
tool_source: the tool `b` has both `pypi` and `url`
  "b" this tool
  help: remove one of them
wrong_type: `c` is a string, expected a table
  "'x'" expected a table
"#
    );
}

#[test]
fn a_cycle_is_reported_as_a_path() {
    assert_eq!(
        problems(
            r#"
[tools]
oven = { pypi = "oven==1" }
[stage.a]
kind = "fire"
cone = 1
pot = "c"
[stage.b]
kind = "fire"
cone = 1
pot = "a"
[stage.c]
kind = "fire"
cone = 1
pot = "b"
[stage.d]
kind = "fire"
cone = 1
pot = "d"
[stage.e]
kind = "judge"
wares = ["a", "d"]
"#
        ),
        r#"cycle: stages depend on each other: a -> c -> b -> a
  "\"c\"" `a` depends on this
  "\"b\"" `c` depends on this
  "\"a\"" `b` depends on this
  help: one of these inputs must come from another stage
cycle: `d` depends on itself
  "\"d\"" here
  help: name another stage as this input
"#
    );
}

#[test]
fn variables_must_be_defined_used_and_scalar() {
    let text = r#"
[vars]
shop = "x"
idle = 1
list = []
nest = "${shop}"
[stage.clay]
kind = "fetch"
url = "a ${shpo} b"
sha256 = "${shop"
"#;
    assert_eq!(
        problems_with(text, &[("shap", "y"), ("idle", "much")]),
        r#"unknown_variable: --set shap: the plan has no such variable
  help: did you mean `shop`?
unused_variable: nothing uses the variable `shop`
  "shop" set here
  help: write `${shop}` where it belongs, or remove it
wrong_type: --set idle=much: expected an integer
  "idle" an integer here
  help: the value must have the type that it has in the plan
unused_variable: nothing uses the variable `idle`
  "idle" set here
  help: write `${idle}` where it belongs, or remove it
wrong_type: the variable `list` is a list
  "[]" expected a string, number or boolean
variable: the variable `nest` refers to a variable
  "\"${shop}\"" not filled in here
  help: write `${...}` where the variable is used
unknown_variable: there is no variable `shpo`
  "${shpo}" here
  help: did you mean `shop`?
variable: `${` without `}`
  "${" here
  help: write `$${` for the characters `${` themselves
"#
    );
}

#[test]
fn limits_of_a_plan_are_enforced() {
    let messages = |text: String| -> Vec<String> {
        read(&text, &[])
            .unwrap_err()
            .into_iter()
            .map(|p| p.code.to_string())
            .collect()
    };
    assert_eq!(
        messages("#".repeat((1 << 20) + 1)),
        ["kiln::plan::too_large"]
    );
    let many: String = (0..1001)
        .map(|i| format!("[stage.s{i}]\nkind = 'fetch'\nurl = ''\n"))
        .collect();
    assert_eq!(
        messages(format!("[plan]\nname = 'a'\n{many}")),
        ["kiln::plan::too_large"]
    );
    let deep = format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(read(&deep, &[]).is_err());
}

/// The plans that people copy.
#[test]
fn every_committed_plan_is_valid() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("plans");
    let mut found = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        found += 1;
        let mut kiln = std::process::Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.env("QNN_SDK_ROOT", "/opt/qairt")
            .arg("check")
            .arg(&path);
        let output = kiln.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {errors}", path.display());
    }
    assert!(found >= 2);
}
