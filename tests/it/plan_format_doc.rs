//! `docs/plan-format.md` has the tables that `kiln schema --markdown` prints, and the examples in
//! the documentation are valid plans. `KILN_BLESS=1` writes the tables into the page.

use std::path::{Path, PathBuf};
use std::process::Command;

use boon::{Compiler, Schemas};
use kiln::plan::{self, Source, SourceMap, Tables};
use kiln::qnn::{Chip, Numbers, Soc};
use kiln::report::KINDS;

const END: &str = "<!-- end generated -->\n";

fn page_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/plan-format.md")
}

fn page() -> String {
    std::fs::read_to_string(page_path()).unwrap()
}

fn tables() -> Vec<Tables> {
    plan::tables(&kiln::stages::all())
}

fn begin(name: &str) -> String {
    format!("<!-- begin generated: {name} -->\n")
}

/// The range of `page` between the markers of `name`.
fn block(page: &str, name: &str) -> std::ops::Range<usize> {
    let begin = begin(name);
    let starts: Vec<usize> = page.match_indices(&begin).map(|(at, _)| at).collect();
    let [start] = starts[..] else {
        panic!("{} blocks begin with {begin}", starts.len());
    };
    let start = start + begin.len();
    let length = page[start..].find(END).expect("a block without an end");
    start..start + length
}

/// `page` with the current tables.
fn with_tables(page: &str) -> String {
    let mut page = page.to_string();
    for Tables { name, markdown, .. } in tables() {
        page.replace_range(block(&page, name), &format!("\n{markdown}\n"));
    }
    page
}

#[test]
fn the_tables_match_the_schema() {
    let (found, expected) = (page(), with_tables(&page()));
    if std::env::var_os("KILN_BLESS").is_some() {
        std::fs::write(page_path(), expected).unwrap();
        return;
    }
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(
            found, expected,
            "write the tables with KILN_BLESS=1, or change the comment of the parameter"
        );
    }
    assert_eq!(found, expected);
}

/// Each block is in the section of its own kind.
#[test]
fn every_kind_has_a_section_with_its_tables() {
    let page = page();
    assert_eq!(page.matches("<!-- begin generated").count(), tables().len());
    for kind in kiln::stages::all().kinds() {
        let heading = format!("\n### `{kind}`\n");
        let section = page
            .find(&heading)
            .unwrap_or_else(|| panic!("no heading for `{kind}`"));
        let after = section + heading.len();
        let end = page[after..]
            .find("\n##")
            .map_or(page.len(), |at| after + at);
        let block = block(&page, kind);
        assert!(section < block.start && block.end < end, "{kind}");
    }
}

#[test]
fn every_row_has_a_description() {
    for Tables { name, markdown, .. } in tables() {
        for row in markdown.lines().filter(|line| line.starts_with('|')) {
            assert!(!row.ends_with("|  |"), "{name}: {row}");
        }
    }
}

#[test]
fn schema_markdown_prints_the_tables() {
    let call = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(["schema", "--markdown"])
        .output()
        .unwrap();
    let printed = String::from_utf8(call.stdout).unwrap();
    assert!(call.status.success());
    for Tables {
        name,
        summary,
        markdown,
    } in tables()
    {
        let section = format!("\n## {name}\n\n{summary}\n\n{markdown}");
        assert!(printed.contains(&section), "{name}");
    }
}

/// The cells of the rows that begin with `start`, without backquotes.
fn rows(page: &str, start: &str) -> Vec<Vec<String>> {
    let rows = page.lines().filter(|line| line.starts_with(start));
    rows.map(|row| {
        let cells = row.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().replace('`', "")).collect()
    })
    .collect()
}

#[test]
fn the_chips_are_documented() {
    let mut table = String::new();
    for chip in Chip::all() {
        let names: Vec<String> = chip.names().map(|name| format!("`{name}`")).collect();
        let yes = |is_so| if is_so { "yes" } else { "no" };
        table += &format!(
            "| {} | {} | v{} | {} MiB | {} | {} |\n",
            names.join(", "),
            chip.model,
            chip.arch,
            chip.vtcm_mb,
            yes(Soc::from(chip).has_f16()),
            yes(chip.numbers == Numbers::Blocks),
        );
    }
    assert!(page().contains(&table), "{table}");
    for name in Chip::estimated_names() {
        let chip = Chip::estimated(name).unwrap();
        let row = format!("| `{name}` | {} | v{} | ", chip.model, chip.arch);
        assert!(page().contains(&row), "{row}");
    }
}

#[test]
fn the_limits_of_each_artifact_are_documented() {
    let page = page();
    let table = page
        .split("\n| output | reported | limits |\n")
        .nth(1)
        .unwrap();
    let table = table.split("\n\n").next().unwrap();
    let mut found = vec![];
    for row in rows(table, "| `") {
        for artifact in row[0].split(", ") {
            let mut limits: Vec<&str> = row[2].split(", ").collect();
            limits.sort();
            found.push(format!("{artifact}: {}", limits.join(" ")));
        }
    }
    let mut expected = vec![];
    for (artifact, limits) in KINDS {
        let mut limits = limits.to_vec();
        limits.sort();
        expected.push(format!("{artifact}: {}", limits.join(" ")));
    }
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

/// The TOML examples of a page.
fn examples(page: &str) -> Vec<&str> {
    let blocks = page.split("```toml\n").skip(1);
    blocks
        .map(|block| block.split("```").next().unwrap())
        .collect()
}

/// A complete plan is read like a plan; a fragment is compared with the schema.
#[test]
fn documentation_examples_are_valid_plans() {
    let registry = kiln::stages::all();
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler
        .add_resource("plan.schema.json", plan::schema(&registry))
        .unwrap();
    let schema = compiler.compile("plan.schema.json", &mut schemas).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let (mut plans, mut fragments) = (0, 0);
    for file in std::fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        for example in examples(&std::fs::read_to_string(&path).unwrap()) {
            let at = format!("{}:\n{example}", path.display());
            if example.starts_with("[plan]") {
                plans += 1;
                let source = Source {
                    name: path.display().to_string(),
                    text: example.into(),
                    folder: folder.clone(),
                };
                let map = SourceMap::gather(source, &mut |path| panic!("reads {}", path.display()));
                let problems = plan::read(&map, &[], &registry).err();
                assert!(problems.is_none(), "{at}\n{problems:#?}");
            } else {
                fragments += 1;
                let fragment =
                    toml::from_str(example).unwrap_or_else(|error| panic!("{at}\n{error}"));
                let checked = schemas.validate(&fragment, schema);
                assert!(checked.is_ok(), "{at}\n{}", checked.unwrap_err());
            }
        }
    }
    assert!(
        plans >= 1 && fragments >= 10,
        "{plans} plans, {fragments} fragments"
    );
}
