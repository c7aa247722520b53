//! The engine beside its peers: `cargo bench --bench engine` (needs `ninja`, `b3sum` and `bash`;
//! some minutes). With arguments, only so many parts, or only `big`: `cargo bench --bench engine --
//! 1000 big`.
//!
//! N parts in ten stages; part i of a stage takes part i of the one before. For ninja, N edges of
//! the same shape. Both are whole processes. kiln is the program itself with one trivial stage
//! kind. Of 100,000 edges ninja has no build log to read, which spares it work. `big` is a plan of
//! eight real stages over a file of a gigabyte.

#[allow(dead_code)]
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
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

/// Above it, ninja does not run its edges.
const FAKED: usize = 10_000;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("kiln") => {
            let cli = Cli::parse_from(&args[1..]);
            let registry = Registry::new(vec![Box::new(Erased(Trivial))]);
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
    let asked: Vec<&str> = args[1..]
        .iter()
        .map(String::as_str)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let asked = if asked.is_empty() {
        vec!["1000", "10000", "100000", "big"]
    } else {
        asked
    };
    let sizes: Vec<usize> = asked.iter().filter_map(|arg| arg.parse().ok()).collect();
    println!("nothing to do; medians of pairs, wall and CPU (user + system) of whole processes");
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
    for parts in sizes {
        no_op(&home.path().join(parts.to_string()), parts);
    }
    if asked.contains(&"big") {
        big(home.path());
    }
}

/// Eight stages over a gigabyte: with nothing to do, and after the file was touched.
fn big(home: &Path) {
    let model = TinyGguf::qwen2()
        .layers(40)
        .widths(1536, 8960)
        .heads(12, 2)
        .write();
    fs::write(home.join("model.gguf"), &model).expect("a model");
    fs::write(home.join("big.toml"), BIG).expect("a plan");
    fs::write(home.join("text.txt"), "clay is shaped, dried and fired").expect("a text");
    // A file that was just written may still change within a tick of the clock; such stamps are not
    // believed.
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
    said(&mut kiln(), "written to");
    said(&mut kiln(), "nothing to do");
    let no_op: Vec<Times> = (0..21).map(|_| run(&mut kiln(), "nothing to do")).collect();
    let (mut touched, mut hashed) = (vec![], vec![]);
    for round in 0..11 {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + round);
        let file = fs::File::options()
            .write(true)
            .open(home.join("model.gguf"))
            .expect("the model");
        file.set_modified(time).expect("a touch");
        let begun = Instant::now();
        said(&mut kiln(), "nothing to do");
        touched.push(Times {
            wall: begun.elapsed(),
            cpu: Duration::ZERO,
        });
        hashed.push(run(&mut b3sum(), "model.gguf"));
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
    let files = write_files(&home.join("by-hand"), parts);
    let begun = Instant::now();
    said(&mut kiln(), "ran");
    let clean = begun.elapsed();
    run(&mut kiln(), "nothing to do");
    if parts <= FAKED {
        said(&mut ninja(), "");
    }
    run(&mut ninja(), "no work to do");

    let rounds = if parts > FAKED { 7 } else { 21 };
    let (mut ours, mut theirs) = (vec![], vec![]);
    for _ in 0..rounds {
        ours.push(run(&mut kiln(), "nothing to do"));
        theirs.push(run(&mut ninja(), "no work to do"));
    }
    let (wall, their_wall) = (median(&ours, |t| t.wall), median(&theirs, |t| t.wall));
    let (cpu, their_cpu) = (median(&ours, |t| t.cpu), median(&theirs, |t| t.cpu));
    println!(
        "{parts:>8}{wall:>9.1} ms{their_wall:>9.1} ms{:>8.2}{cpu:>9.1} ms{their_cpu:>9.1} \
         ms{:>8.2}{:>12.2}{:>17.3}{:>13.3}",
        wall / their_wall,
        cpu / their_cpu,
        wall * 1e3 / parts as f64,
        clean.as_secs_f64() * 1e3 / parts as f64,
        files.as_secs_f64() * 1e3 / parts as f64,
    );
}

/// The least that a clean build asks of the disk: a blob and a result a part, each written under
/// another name and renamed, by two threads.
fn write_files(home: &Path, parts: usize) -> Duration {
    let folder = |room: &str, shelf: u8| home.join(room).join(format!("{shelf:02x}"));
    for shelf in 0..=u8::MAX {
        for room in ["blobs", "actions"] {
            fs::create_dir_all(folder(room, shelf)).expect("a folder");
        }
    }
    let begun = Instant::now();
    let write = |part: usize| {
        for room in ["blobs", "actions"] {
            let fresh = home.join(format!("{room}-{part}"));
            fs::write(&fresh, [0; 200]).expect("a file");
            let shelf = kiln::base::hash_bytes(&part.to_le_bytes()).hash[0];
            fs::rename(&fresh, folder(room, shelf).join(part.to_string())).expect("a file");
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..2 {
            scope.spawn(move || (thread..parts).step_by(2).for_each(write));
        }
    });
    begun.elapsed()
}

/// In milliseconds.
fn median(times: &[Times], of: fn(&Times) -> Duration) -> f64 {
    let mut times: Vec<f64> = times
        .iter()
        .map(|times| of(times).as_secs_f64() * 1e3)
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

struct Times {
    wall: Duration,
    cpu: Duration,
}

/// Runs `command`, which must say `expected`, and once more for its processor time.
fn run(command: &mut Command, expected: &str) -> Times {
    let begun = Instant::now();
    said(command, expected);
    let wall = begun.elapsed();
    // bash knows the times of its children, to the millisecond.
    let mut bash = Command::new("bash");
    bash.args(["-c", r#""$@"; times"#, "bash"])
        .arg(command.get_program())
        .args(command.get_args());
    bash.current_dir(command.get_current_dir().unwrap_or(Path::new(".")));
    let times = said(&mut bash, "");
    let of_children = times.trim_end().lines().last().expect("two lines of times");
    let seconds = |time: &str| {
        time.trim_end_matches('s')
            .split_once('m')
            .and_then(|(_, s)| s.parse::<f64>().ok())
    };
    let cpu = of_children.split(' ').filter_map(seconds).sum();
    Times {
        wall,
        cpu: Duration::from_secs_f64(cpu),
    }
}

fn said(command: &mut Command, expected: &str) -> String {
    let output = command.stdin(Stdio::null()).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(expected), "{command:?}: {said}");
    said.into_owned()
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
    // As many edges take minutes to run: they are marked so that ninja believes files that it did
    // not make.
    let is_faked = parts > FAKED;
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

/// As little as a stage can do: a part is a small blob that says where it stands.
struct Trivial;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Params {
    /// How many.
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
        gives: "thing",
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
        let given: BTreeMap<&str, _> = inputs
            .optional("from")
            .into_iter()
            .flat_map(|manifest| {
                manifest
                    .parts
                    .iter()
                    .map(|(name, part)| (name.as_str(), part))
            })
            .collect();
        let order = |number: usize| {
            let order = Order::new(number.to_string(), Number { number }).demand(Demand::default());
            match given.get(format!("{number}/out").as_str()) {
                Some(part) => order.input("from", part),
                None => order,
            }
        };
        Ok((0..params.parts).map(order).collect())
    }

    fn run(order: Number, job: &Job) -> Result<Outputs> {
        let before = job
            .input("from")
            .and_then(|_| job.read("from"))
            .map_or(vec![], |bytes| bytes.to_vec());
        let text = [before, format!("{} ", order.number).into_bytes()].concat();
        Ok([(
            PartName::new("out")?,
            job.write(&text, CanonJson::default())?,
        )]
        .into())
    }
}
