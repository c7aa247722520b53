//! The engine compared with ninja and b3sum: `cargo bench --bench engine` (needs `ninja`, `b3sum`
//! and `bash`, and takes some minutes). Arguments select the numbers of parts, or `big`: `cargo
//! bench --bench engine -- 1000 big`.
//!
//! The plan has N parts in ten stages; part i of a stage reads part i of the previous stage. ninja
//! has N edges of the same shape. Complete processes are measured; kiln is the program with one
//! trivial stage kind. With 100,000 edges ninja has no build log to read, which saves it work.
//! `big` is a plan of eight real stages with a file of one gigabyte.

// The modules in `support` belong to several crates.
#![allow(unreachable_pub)]

#[allow(dead_code)]
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use kiln::action::{
    Demand, Erased, InputSpec, Inputs, Job, Order, Outputs, PartName, Registry, StageSpec,
    TypedStage,
};
use kiln::base::{CanonJson, Result};
use kiln::cli::Cli;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use support::tiny_gguf::TinyGguf;

const STAGES: usize = 10;

/// Above this number of parts, the outputs of ninja are written without running its edges.
const MAX_NINJA_EDGES: usize = 10_000;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("kiln") => {
            let cli = Cli::parse_from(&args[1..]);
            let registry = Registry::new(vec![Box::new(Erased::new(Trivial))]);
            cli.run(&registry)
                .unwrap_or_else(|failed| cli.common.report(&failed))
                .into()
        }
        _ => {
            measure(&args);
            ExitCode::SUCCESS
        }
    }
}

fn measure(args: &[String]) {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let mut selected: Vec<&str> = args[1..].iter().map(String::as_str).collect();
    selected.retain(|arg| !arg.starts_with('-'));
    if selected.is_empty() {
        selected = vec!["1000", "10000", "100000", "big"];
    }
    println!("nothing to do; medians of pairs, wall and CPU (user + system) of complete processes");
    println!(
        "{:>8}{:>12}{:>12}{:>8}{:>12}{:>12}{:>8}{:>12}{:>17}{:>13}",
        "parts",
        "kiln",
        "ninja",
        "ratio",
        "kiln CPU",
        "ninja CPU",
        "ratio",
        "us a part",
        "clean ms a part",
        "of it files"
    );
    for size in &selected {
        if let Ok(parts) = size.parse() {
            no_op(&home.path().join(size), parts);
        }
    }
    if selected.contains(&"big") {
        big(home.path());
    }
}

/// Eight stages with a gigabyte: with nothing to do, and after the file was touched.
fn big(home: &Path) {
    let model = TinyGguf::qwen2()
        .layers(40)
        .widths(1536, 8960)
        .heads(12, 2)
        .write();
    fs::write(home.join("model.gguf"), &model).expect("a model");
    fs::write(home.join("big.toml"), BIG).expect("a plan");
    fs::write(home.join("text.txt"), "clay is shaped, dried and fired").expect("a text");
    // kiln does not trust the time of a file that was just written, since it could still change
    // within the resolution of the clock.
    std::thread::sleep(Duration::from_secs(3));
    let kiln = || {
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.args(["build", "big.toml"]).current_dir(home);
        kiln
    };
    let b3sum = || {
        let mut b3sum = Command::new("b3sum");
        b3sum.arg("model.gguf").current_dir(home);
        b3sum
    };
    run_once(&mut kiln(), "written to");
    run_once(&mut kiln(), "nothing to do");
    let measure_no_op = |_| measure_command(&mut kiln(), "nothing to do");
    let no_op: Vec<Times> = (0..21).map(measure_no_op).collect();
    let (mut touched, mut hashed) = (vec![], vec![]);
    for round in 0..11 {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + round);
        let file = fs::File::options()
            .write(true)
            .open(home.join("model.gguf"))
            .expect("the model");
        file.set_modified(time).expect("a touch");
        let start = Instant::now();
        run_once(&mut kiln(), "nothing to do");
        touched.push(Times {
            wall: start.elapsed(),
            cpu: Duration::ZERO,
        });
        hashed.push(measure_command(&mut b3sum(), "model.gguf"));
    }
    let wall = |times: &[Times]| median(times, |times| times.wall);
    println!(
        "eight stages over {:.2} GB: nothing to do {:.1} ms; touched {:.0} ms, b3sum {:.0} ms, \
         ratio {:.2}",
        model.len() as f64 / 1e9,
        wall(&no_op),
        wall(&touched),
        wall(&hashed),
        wall(&touched) / wall(&hashed),
    );
}

const BIG: &str = r#"
    [plan]
    name = "big"
    [stage]
    source = { kind = "fetch", url = "file:model.gguf", tracked = true }
    text = { kind = "fetch", url = "file:text.txt", tracked = true }
    model = { kind = "inspect", gguf = "source" }
    weights = { kind = "requant", tensors = "model" }
    rounded = { kind = "requant", tensors = "model", scheme = "int8-block" }
    graph = { kind = "graph", model = "model", weights = "weights", keep = ["decode.onnx"] }
    graph-rounded = { kind = "graph", model = "model", weights = "rounded", keep = ["decode.onnx"] }
    norms = { kind = "dequant", model = "model", match = ["*_norm.weight"] }
"#;

fn no_op(home: &Path, parts: usize) {
    fs::create_dir_all(home).expect("a folder");
    fs::write(home.join("plan.toml"), plan(parts)).expect("a plan");
    let ninja_home = home.join("ninja");
    write_ninja(&ninja_home, parts);

    let program = std::env::current_exe().expect("this program");
    let kiln = || {
        let mut kiln = Command::new(&program);
        kiln.args(["kiln", "build", "plan.toml"]).current_dir(home);
        kiln
    };
    let ninja = || {
        let mut ninja = Command::new("ninja");
        ninja.current_dir(&ninja_home);
        ninja
    };
    let files = write_files(&home.join("files"), parts);
    let start = Instant::now();
    run_once(&mut kiln(), "ran");
    let clean = start.elapsed();
    measure_command(&mut kiln(), "nothing to do");
    if parts <= MAX_NINJA_EDGES {
        run_once(&mut ninja(), "");
    }
    measure_command(&mut ninja(), "no work to do");

    let rounds = if parts > MAX_NINJA_EDGES { 7 } else { 21 };
    let (mut of_kiln, mut of_ninja) = (vec![], vec![]);
    for _ in 0..rounds {
        of_kiln.push(measure_command(&mut kiln(), "nothing to do"));
        of_ninja.push(measure_command(&mut ninja(), "no work to do"));
    }
    let (wall, ninja_wall) = (median(&of_kiln, |t| t.wall), median(&of_ninja, |t| t.wall));
    let (cpu, ninja_cpu) = (median(&of_kiln, |t| t.cpu), median(&of_ninja, |t| t.cpu));
    println!(
        "{parts:>8}{wall:>9.1} ms{ninja_wall:>9.1} ms{:>8.2}{cpu:>9.1} ms{ninja_cpu:>9.1} \
         ms{:>8.2}{:>12.2}{:>17.3}{:>13.3}",
        wall / ninja_wall,
        cpu / ninja_cpu,
        wall * 1e3 / parts as f64,
        clean.as_secs_f64() * 1e3 / parts as f64,
        files.as_secs_f64() * 1e3 / parts as f64,
    );
}

/// The minimal disk work of a clean build: two threads write a blob and a result per part, each to
/// a temporary name, and rename them.
fn write_files(home: &Path, parts: usize) -> Duration {
    let folder = |kind: &str, prefix: u8| home.join(kind).join(format!("{prefix:02x}"));
    for prefix in 0..=u8::MAX {
        for kind in ["blobs", "actions"] {
            fs::create_dir_all(folder(kind, prefix)).expect("a folder");
        }
    }
    let start = Instant::now();
    let write = |part: usize| {
        for kind in ["blobs", "actions"] {
            let temporary = home.join(format!("{kind}-{part}"));
            fs::write(&temporary, [0; 200]).expect("a file");
            let prefix = kiln::base::hash_bytes(&part.to_le_bytes()).hash[0];
            fs::rename(&temporary, folder(kind, prefix).join(part.to_string())).expect("a file");
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..2 {
            scope.spawn(move || {
                for part in (thread..parts).step_by(2) {
                    write(part);
                }
            });
        }
    });
    start.elapsed()
}

/// The median in milliseconds.
fn median(times: &[Times], of: fn(&Times) -> Duration) -> f64 {
    let milliseconds = |times: &Times| of(times).as_secs_f64() * 1e3;
    let mut times: Vec<f64> = times.iter().map(milliseconds).collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

struct Times {
    wall: Duration,
    cpu: Duration,
}

/// Runs `command` for its wall time, and again for its CPU time.
fn measure_command(command: &mut Command, expected: &str) -> Times {
    let start = Instant::now();
    run_once(command, expected);
    let wall = start.elapsed();
    // bash prints the times of its children in milliseconds.
    let mut bash = Command::new("bash");
    bash.args(["-c", r#""$@"; times"#, "bash"])
        .arg(command.get_program())
        .args(command.get_args());
    bash.current_dir(command.get_current_dir().unwrap_or(Path::new(".")));
    let times = run_once(&mut bash, "");
    let children = times.trim_end().lines().last().expect("two lines of times");
    let mut cpu = Duration::ZERO;
    for time in children.split(' ') {
        let (_, seconds) = time.trim_end_matches('s').split_once('m').expect("a time");
        cpu += Duration::from_secs_f64(seconds.parse().expect("seconds"));
    }
    Times { wall, cpu }
}

/// Runs `command`, whose output must contain `expected`.
fn run_once(command: &mut Command, expected: &str) -> String {
    let output = command.stdin(Stdio::null()).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(expected), "{command:?}: {text}");
    text.into_owned()
}

fn plan(parts: usize) -> String {
    let mut plan = String::from("[plan]\nname = \"trivial\"\n");
    for stage in 0..STAGES {
        let from = if stage > 0 {
            format!("from = \"s{}\"\n", stage - 1)
        } else {
            String::new()
        };
        let _ = write!(
            plan,
            "[stage.s{stage}]\nkind = \"trivial\"\nparts = {}\nkeep = false\n{from}",
            parts / STAGES
        );
    }
    plan
}

fn write_ninja(home: &Path, parts: usize) {
    fs::create_dir_all(home).expect("a folder");
    // Many edges would take minutes to run. With this mark, ninja accepts files that it did not
    // write.
    let is_faked = parts > MAX_NINJA_EDGES;
    let mark = if is_faked { " generator = 1\n" } else { "" };
    let mut build = format!("rule cp\n command = cp $in $out\n{mark}");
    let file = |stage: usize, part: usize| format!("s{stage}_{part}");
    for part in 0..parts / STAGES {
        fs::write(home.join(format!("in_{part}")), format!("{part}")).expect("a file");
    }
    for stage in 0..STAGES {
        for part in 0..parts / STAGES {
            let from = if stage > 0 {
                file(stage - 1, part)
            } else {
                format!("in_{part}")
            };
            let _ = writeln!(build, "build {}: cp {from}", file(stage, part));
            if is_faked {
                fs::write(home.join(file(stage, part)), format!("{part}")).expect("a file");
            }
        }
    }
    fs::write(home.join("build.ninja"), build).expect("a build file");
}

/// A stage with minimal work: each part is a small blob.
struct Trivial;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Params {
    /// The number of parts.
    parts: usize,
}

#[derive(Serialize, Deserialize)]
struct Number {
    number: usize,
}

impl TypedStage for Trivial {
    type Params = Params;
    type Order = Number;
    const SPEC: StageSpec = StageSpec {
        kind: "trivial",
        version: 1,
        summary: "",
        output: "thing",
        inputs: &[InputSpec {
            name: "from",
            meaning: "",
            accepts: &["thing"],
            required: false,
            many: false,
        }],
        params: &["parts"],
        keyed: &[],
        reaches_outside: false,
        measures: false,
    };

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Number>>> {
        let previous = inputs.optional("from");
        let mut orders = vec![];
        for number in 0..params.parts {
            let order = Order::new(number.to_string(), Number { number }).demand(Demand::default());
            orders.push(match previous {
                Some(manifest) => order.input("from", manifest.part(&format!("{number}/out"))?),
                None => order,
            });
        }
        Ok(orders)
    }

    fn run(order: Number, job: &Job) -> Result<Outputs> {
        let mut text = match job.read("from") {
            Ok(previous) => previous.to_vec(),
            Err(_) => vec![],
        };
        text.extend(format!("{} ", order.number).into_bytes());
        Ok([(
            PartName::new("out")?,
            job.write(&text, CanonJson::default())?,
        )]
        .into())
    }
}
