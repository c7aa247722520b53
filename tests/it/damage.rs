//! Damage to each file of a cache, and changed file times and copies of a cache: a build writes the
//! correct artifacts, or reports a problem and the next build writes them.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use crate::support::fetching::sha256;
use crate::support::tiny_build::{TinyBuild, codes, printed};
use crate::support::tiny_gguf::Random;
use crate::support::tree;
use crate::support::web::{Reply, Server};
use kiln::base::hash_bytes;

const LOCAL: &str = "the local file";
const REMOTE: &str = "the remote file";

/// A plan with two files, one local and one on a web server.
struct Project {
    root: tempfile::TempDir,
    remote: String,
}

impl Project {
    fn new() -> Project {
        let server = Server::new(|_, request| Reply::range(REMOTE.as_bytes(), request));
        let project = Project {
            root: tempfile::tempdir().unwrap(),
            remote: server.url("/remote"),
        };
        let stage = |name: &str, url: &str, content: &str| {
            format!(
                "{name} = {{ kind = 'fetch', url = '{url}', sha256 = '{}' }}\n",
                sha256(content.as_bytes())
            )
        };
        let stages =
            stage("local", "file:local", LOCAL) + &stage("remote", &project.remote, REMOTE);
        fs::write(
            project.root.path().join("plan.toml"),
            format!("[plan]\nname = 'p'\n[stage]\n{stages}"),
        )
        .unwrap();
        fs::write(project.root.path().join("local"), LOCAL).unwrap();
        project
    }

    fn build(&self, workspace: &str, stages: &[&str]) -> Output {
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.current_dir(self.root.path())
            .args(["build", "--json", "plan.toml"])
            .args(stages);
        kiln.args([
            "--cache",
            &format!("{workspace}/cache"),
            "--out",
            &format!("{workspace}/out"),
        ])
        .output()
        .unwrap()
    }

    /// A workspace with the local file and a partial download of the remote file.
    fn half_built(&self, workspace: &str) -> PathBuf {
        let _ = fs::remove_dir_all(self.root.path().join(workspace));
        let output = self.build(workspace, &["local"]);
        assert!(output.status.success(), "{}", printed(&output));
        let workspace = self.root.path().join(workspace);
        let partial = workspace
            .join("cache/partial")
            .join(hash_bytes(self.remote.as_bytes()).hex());
        fs::create_dir_all(&partial).unwrap();
        fs::write(partial.join("download"), &REMOTE[..9]).unwrap();
        fs::write(partial.join("etag"), "\"one\"").unwrap();
        workspace
    }

    fn written(&self, workspace: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        tree::files(&self.root.path().join(workspace).join("out"))
    }
}

/// The relative paths of all files below `root`.
fn all_files(root: &Path) -> Vec<PathBuf> {
    let mut find = Command::new("find");
    find.arg(root).args(["-type", "f", "-printf", "%P\\n"]);
    let found = String::from_utf8(find.output().unwrap().stdout).unwrap();
    let mut files: Vec<PathBuf> = found.lines().map(PathBuf::from).collect();
    files.sort();
    files
}

/// Damaged versions of a file, each with a description; `None` removes the file.
fn damages(good: &[u8], random: &mut Random) -> Vec<(String, Option<Vec<u8>>)> {
    let random_bytes = (0..good.len()).map(|_| random.bits() as u8).collect();
    let mut damages = vec![
        ("removed".into(), None),
        ("emptied".into(), Some(vec![])),
        ("random".into(), Some(random_bytes)),
        ("longer".into(), Some([good, b"x"].concat())),
    ];
    for _ in 0..4 {
        let (at, bit) = (random.bits() as usize % good.len(), random.bits() % 8);
        let mut flipped = good.to_vec();
        flipped[at] ^= 1 << bit;
        damages.push((format!("bit {bit} of byte {at} flipped"), Some(flipped)));
    }
    let at = random.bits() as usize % good.len();
    damages.push((format!("cut to {at} bytes"), Some(good[..at].into())));
    damages
}

/// The problem that stays until the user acts: a folder that is no longer marked as kiln's.
fn permanent_problem(file: &Path, bytes: Option<&[u8]>) -> Option<&'static str> {
    match (file.file_name()?.to_str()?, bytes) {
        ("layout", Some(_)) => Some("kiln::store::layout"),
        ("layout", None) => Some("kiln::store::foreign"),
        (".kiln.json", None) => Some("kiln::publish::foreign"),
        _ => None,
    }
}

#[test]
fn damage_to_any_file_costs_at_most_one_failed_build() {
    let project = Project::new();
    let output = project.build("expected", &[]);
    assert!(output.status.success(), "{}", printed(&output));
    let expected = project.written("expected");
    assert_eq!(expected.len(), 4, "two files, a receipt and checksums");
    // Always the same folder, since the keys of notes depend on its path.
    let name = "workspace";
    let files = all_files(&project.half_built(name));
    for part in ["actions", "blobs", "last", "layout", "notes", "partial"] {
        let folder = Path::new("cache").join(part);
        let mut in_folder = files.iter().filter(|file| file.starts_with(&folder));
        assert!(in_folder.next().is_some(), "{part} in {files:?}");
    }

    let mut random = Random::of("damage", 1);
    let (mut succeeded, mut failed) = (0, 0);
    for file in &files {
        let good = fs::read(project.half_built(name).join(file)).unwrap();
        for (what, bytes) in damages(&good, &mut random) {
            for keep_artifacts in [true, false] {
                let workspace = project.half_built(name);
                let path = workspace.join(file);
                fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
                match &bytes {
                    Some(bytes) => fs::write(&path, bytes).unwrap(),
                    None => fs::remove_file(&path).unwrap(),
                }
                if !keep_artifacts {
                    fs::remove_dir_all(workspace.join("out")).unwrap();
                }
                let mut permanent = permanent_problem(file, bytes.as_deref());
                if permanent == Some("kiln::publish::foreign") && !workspace.join("out").exists() {
                    permanent = None;
                }
                let first = project.build(name, &[]);
                let case = format!(
                    "{}: {what}, artifacts kept: {keep_artifacts}: {}",
                    file.display(),
                    printed(&first)
                );
                succeeded += usize::from(first.status.success());
                failed += usize::from(!first.status.success());
                if let Some(code) = permanent {
                    assert_eq!(codes(&first), [code], "{case}");
                } else if first.status.success() {
                    assert_eq!(project.written(name), expected, "{case}");
                } else {
                    assert_eq!(codes(&first).len(), 1, "{case}");
                    let second = project.build(name, &[]);
                    assert!(
                        second.status.success(),
                        "{case}\nand then {}",
                        printed(&second)
                    );
                    assert_eq!(project.written(name), expected, "{case}");
                }
            }
        }
    }
    println!(
        "{} files, {succeeded} builds succeeded, {failed} failed",
        files.len()
    );
    assert!(
        succeeded > failed && failed > 0,
        "{succeeded} succeeded, {failed} failed"
    );
}

/// Sets the times of all files and folders below `folder`.
fn set_times(folder: &Path, time: SystemTime) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            set_times(&path, time);
        }
        let file = File::open(&path).unwrap();
        file.set_times(FileTimes::new().set_modified(time).set_accessed(time))
            .unwrap();
    }
}

#[test]
fn copies_and_file_times_do_not_cause_reruns() {
    let tiny = TinyBuild::new();
    let expected = tiny.expected();
    let original = tiny.workspace("expected");
    let (parts, _) = tiny.build_to_end("expected");
    let day = Duration::from_secs(86_400);
    for (name, copy) in [
        ("copied", "-r"),
        ("with its times", "-a"),
        ("in 1970", "-a"),
        ("in the future", "-a"),
        ("without notes", "-a"),
    ] {
        let workspace = tiny.workspace(name);
        assert!(
            Command::new("cp")
                .arg(copy)
                .arg(&original)
                .arg(&workspace)
                .status()
                .unwrap()
                .success()
        );
        match name {
            "in 1970" => set_times(&workspace, SystemTime::UNIX_EPOCH),
            "in the future" => set_times(&workspace, SystemTime::now() + 400 * day),
            "without notes" => fs::remove_dir_all(workspace.join("cache/notes")).unwrap(),
            _ => {}
        }
        assert_eq!(tiny.build_to_end(name), (parts, 0), "{name}");
        assert_eq!(tiny.written(name), expected, "{name}");
        assert!(tiny.verifies(name), "{name}");
        // The cache also serves a workspace at another path.
        fs::remove_dir_all(workspace.join("out")).unwrap();
        let moved = tiny.workspace(&format!("{name}, moved"));
        fs::rename(&workspace, &moved).unwrap();
        assert_eq!(
            tiny.build_to_end(&format!("{name}, moved")),
            (parts, 0),
            "{name}"
        );
        assert_eq!(tiny.written(&format!("{name}, moved")), expected, "{name}");
    }
}
