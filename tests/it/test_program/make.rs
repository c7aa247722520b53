//! Three small stage kinds: `fetch` reads a file that is not pinned, so that it may change under the
//! plan; `make` does what its table says; `gauge` does the same, but its outputs are measurements.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use kiln::action::{
    Action, Demand, InputSpec, Inputs, Job, Outputs, ParamProblem, PartName, Stage, StageSpec,
    WorkOrder,
};
use kiln::base::{CanonJson, Result};
use serde_json::{Value, json};

/// The version of `make` and `gauge`, if it is not 1.
const VERSION: &str = "MAKE_VERSION";

/// All three.
pub fn stages() -> [Box<dyn Stage>; 3] {
    let version = std::env::var(VERSION).map_or(1, |version| version.parse().unwrap());
    let make = StageSpec { version, ..MAKE };
    let gauge = StageSpec {
        kind: "gauge",
        measures: true,
        ..make.clone()
    };
    [
        Box::new(Fetch),
        Box::new(Make { spec: make }),
        Box::new(Make { spec: gauge }),
    ]
}

const FETCH: StageSpec = StageSpec {
    kind: "fetch",
    version: 1,
    summary: "",
    output: "thing",
    inputs: &[],
    params: &["url", "sha256", "unpack"],
    keyed: &[],
    reaches_outside: true,
    measures: false,
};

const MAKE: StageSpec = StageSpec {
    kind: "make",
    version: 1,
    summary: "",
    output: "thing",
    inputs: &[InputSpec {
        name: "from",
        meaning: "",
        accepts: &["thing"],
        required: false,
        many: true,
    }],
    params: &["text", "parts", "file", "oven", "random", "times", "blind"],
    keyed: &[],
    reaches_outside: false,
    measures: false,
};

struct Fetch;

fn file_of(params: &Value) -> PathBuf {
    params["url"]
        .as_str()
        .and_then(|url| url.strip_prefix("file:"))
        .unwrap()
        .into()
}

fn order(name: &str, params: Value) -> WorkOrder {
    let name = name.into();
    let (inputs, demand) = (BTreeMap::new(), Demand::default());
    WorkOrder {
        name,
        params,
        inputs,
        tools: vec![],
        origin: None,
        demand,
        smaller: vec![],
    }
}

impl Stage for Fetch {
    fn spec(&self) -> &StageSpec {
        &FETCH
    }

    fn check(
        &self,
        _: &Value,
        _: &[kiln::action::InputStage],
    ) -> std::result::Result<Vec<String>, Vec<ParamProblem>> {
        Ok(vec![])
    }

    fn files(&self, params: &Value) -> Result<Vec<PathBuf>> {
        Ok(vec![file_of(params)])
    }

    fn expand(&self, params: &Value, inputs: &Inputs) -> Result<Vec<WorkOrder>> {
        let file = file_of(params);
        let name = file.file_name().unwrap().to_str().unwrap();
        let origin = Some(file.to_str().unwrap().into());
        Ok(vec![WorkOrder {
            origin,
            ..order("", json!({"file": name, "digest": inputs.file(&file)?}))
        }])
    }

    fn run(&self, action: &Action, job: &Job) -> Result<Outputs> {
        let bytes = fs::read(job.origin()?).unwrap();
        let name = PartName::new(action.params["file"].as_str().unwrap())?;
        Ok([(name, job.write(&bytes, CanonJson::default())?)].into())
    }
}

struct Make {
    spec: StageSpec,
}

impl Stage for Make {
    fn spec(&self) -> &StageSpec {
        &self.spec
    }

    fn check(
        &self,
        params: &Value,
        _: &[kiln::action::InputStage],
    ) -> std::result::Result<Vec<String>, Vec<ParamProblem>> {
        Ok(if params["oven"] == true {
            vec!["oven".into()]
        } else {
            vec![]
        })
    }

    fn files(&self, params: &Value) -> Result<Vec<PathBuf>> {
        Ok(params["file"]
            .as_str()
            .map(PathBuf::from)
            .into_iter()
            .collect())
    }

    fn expand(&self, params: &Value, inputs: &Inputs) -> Result<Vec<WorkOrder>> {
        let mut made = json!({"text": params["text"], "random": params["random"], "times": params["times"],
            "blind": params["blind"]});
        for digest in inputs.files.values() {
            made["digest"] = json!(digest);
        }
        let given = inputs.many("from").iter().flat_map(|(producer, manifest)| {
            manifest
                .parts
                .iter()
                .map(move |(name, part)| (format!("{producer}/{name}"), part.clone()))
        });
        let given: BTreeMap<_, _> = given.collect();
        let tools = if params["oven"] == true {
            inputs.tool_files("oven", &["oven.so"])?
        } else {
            vec![]
        };
        let parts: Vec<String> =
            serde_json::from_value(params["parts"].clone()).unwrap_or(vec![String::new()]);
        let order = |name: &String| {
            let mut made = made.clone();
            made["part"] = json!(name);
            WorkOrder {
                inputs: given.clone(),
                tools: tools.clone(),
                ..order(name, made)
            }
        };
        Ok(parts.iter().map(order).collect())
    }

    fn run(&self, action: &Action, job: &Job) -> Result<Outputs> {
        let text = |key: &str| action.params[key].as_str().unwrap_or_default().to_string();
        let mut bytes = format!("{} {}\n", text("text"), text("part")).into_bytes();
        bytes = bytes.repeat(action.params["times"].as_u64().unwrap_or(1) as usize);
        let blind = action.params["blind"] == true;
        for (name, _) in job.inputs().filter(|_| !blind) {
            bytes.extend_from_slice(&job.read(name)?);
        }
        if action.params["random"] == true {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_nanos();
            bytes.extend_from_slice(now.to_string().as_bytes());
        }
        Ok([(
            PartName::new("out")?,
            job.write(&bytes, CanonJson::default())?,
        )]
        .into())
    }
}
