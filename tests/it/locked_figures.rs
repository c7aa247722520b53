//! What is measured in floating point has other last digits on another processor: a lock does not
//! hold it, and all else.

use std::fs;

use crate::support::test_program::{Project, plain};
use serde_json::{Value, json};

/// A measurement, and one that is made from it.
const PLAN: &str = r#"
[plan]
name = "shop"
[stage.clay]
kind = "fetch"
url = "file:clay.txt"
[stage.weight]
kind = "gauge"
from = "clay"
random = true
keep = true
[stage.report]
kind = "gauge"
from = "weight"
text = "heavy"
"#;

fn locked(plan: &str) -> Project {
    let shop = Project::open();
    shop.write("shop.toml", plan);
    shop.done("build shop.toml --lock");
    shop
}

/// A build of what is locked on what may be another machine: with nothing in its cache.
fn elsewhere(shop: &Project, call: &str) -> (i32, String, String) {
    shop.kiln(
        &format!("build shop.toml --locked --cache elsewhere {call}"),
        &[],
    )
}

#[test]
fn figures_are_not_held() {
    let shop = locked(PLAN);
    let (code, said, errors) = elsewhere(&shop, "");
    assert_eq!(code, 0, "{errors}");
    assert!(
        said.contains("measured values differ from the lock file: report, weight"),
        "{said}"
    );
    let said = shop.done("verify shop.toml");
    let figures = ["report/out", "weight/out"]
        .map(|file| format!("{file}: measured values differ from the lock file\n"));
    assert!(
        said.starts_with(&figures.concat()) && said.contains("\n2 files, "),
        "{said}"
    );

    // What was written is held to what was measured here.
    fs::write(shop.path("out/shop/weight/out"), "light").unwrap();
    let file = fs::File::options()
        .append(true)
        .open(shop.path("out/shop/weight/out"))
        .unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    let (code, _, errors) = elsewhere(&shop, "");
    assert_eq!(code, 0, "written again: {errors}");
    assert!(!shop.read("out/shop/weight/out").contains("light"));
    // A file that is not there is no figure, and neither is a link.
    fs::remove_file(shop.path("out/shop/weight/out")).unwrap();
    assert_eq!(shop.kiln("verify shop.toml", &[]).0, 3);
    std::os::unix::fs::symlink("/etc/hostname", shop.path("out/shop/weight/out")).unwrap();
    assert_eq!(shop.kiln("verify shop.toml", &[]).0, 3);
}

#[test]
fn what_is_made_from_figures_is_held() {
    let made =
        |text: &str| format!("{PLAN}[stage.ware]\nkind = \"make\"\nfrom = \"weight\"\n{text}");
    let shop = locked(&made(""));
    let (code, said, _) = elsewhere(&shop, "");
    let said = plain(&said);
    assert!(
        code == 3 && said.contains("ware   input  follows from weight"),
        "{said}"
    );
    // Where it comes out the same, nothing is amiss.
    let shop = locked(&made("blind = true\n"));
    let (code, _, errors) = elsewhere(&shop, "");
    assert_eq!(code, 0, "{errors}");
}

#[test]
fn a_lock_cannot_make_figures_of_something_else() {
    let shop = locked(&format!(
        "{PLAN}[stage.ware]\nkind = \"make\"\ntext = \"pot\"\n"
    ));
    let (head, ware) = shop
        .read("shop.lock")
        .split_once("[stage.ware]")
        .map(|(a, b)| (a.to_string(), b.to_string()))
        .unwrap();
    shop.write(
        "shop.lock",
        &format!(
            "{head}[stage.ware]{}",
            ware.replacen("keep = true", "keep = true\nmeasured = true", 1)
        ),
    );
    fs::remove_file(shop.path("out/shop/ware/out")).unwrap();
    fs::write(shop.path("out/shop/ware/out"), "forged").unwrap();
    assert_eq!(shop.kiln("verify shop.toml", &[]).0, 3);
    let (code, said, _) = shop.kiln("build shop.toml --locked", &[]);
    assert!(
        code == 3 && said.contains("measured: true -> false"),
        "{said}"
    );
}

#[test]
fn a_lock_that_was_cut_or_edited_is_no_lock() {
    let shop = locked(&format!(
        "{PLAN}[stage.ware]\nkind = \"make\"\ntext = \"pot\"\n"
    ));
    let lock = shop.read("shop.lock");
    let (head, _) = lock.rsplit_once("[stage.weight.artifacts").unwrap();
    shop.write("shop.lock", head);
    for call in ["verify shop.toml", "build shop.toml --locked"] {
        let (code, _, errors) = shop.kiln(call, &[]);
        assert!(
            code == 2 && errors.contains("names no artifact of `weight`"),
            "{call}: {errors}"
        );
    }
    let (head, tail) = lock.split_once("[stage.ware.artifacts").unwrap();
    let (before, digest) = tail.split_once("sha256 = \"").unwrap();
    let other = if digest.starts_with('0') { "1" } else { "0" };
    shop.write(
        "shop.lock",
        &format!(
            "{head}[stage.ware.artifacts{before}sha256 = \"{other}{}",
            &digest[1..]
        ),
    );
    let (code, said, _) = shop.kiln("build shop.toml --locked", &[]);
    assert!(
        code == 3 && said.contains("the lock says something else of what is written out"),
        "{said}"
    );
}

#[test]
fn what_is_optional_may_be_missing_in_a_lock() {
    let shop = locked(&format!(
        "{PLAN}[stage.ware]\nkind = \"make\"\ntext = \"pot\"\noptional = true\n"
    ));
    assert!(!shop.read("shop.lock").contains("[stage.ware]"));
    shop.done("build shop.toml --locked");
    shop.done("build shop.toml ware --locked");
}

#[test]
fn a_part_of_a_plan_uses_less_of_its_tools() {
    let shop = locked(
        &PLAN
            .replace(
                "[stage.clay]",
                "[tools]\noven = { url = \"file:oven.so\" }\n[stage.clay]",
            )
            .replace("random", "oven = true\nrandom"),
    );
    let (code, _, errors) = elsewhere(&shop, "report");
    assert_eq!(code, 0, "{errors}");
}

#[test]
fn figures_of_something_else_are_no_excuse() {
    let shop = locked(PLAN);
    shop.write("clay.txt", "dry");
    let (code, said, _) = elsewhere(&shop, "--json");
    assert_eq!(code, 3, "{said}");
    let line = said
        .lines()
        .find(|line| line.contains("\"locked\""))
        .unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    let stages: Vec<&Value> = line["differs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|differs| &differs["stage"])
        .collect();
    assert_eq!(stages, ["clay", "weight"]);
    assert_eq!(line["figures"], json!(["report", "weight"]));
}
