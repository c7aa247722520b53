//! Damage to a cache, file by file, and what clocks and copies do to one: a build gives the right
//! artifacts, or a clear problem after which the next one does.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use crate::support::fetching::sha256;
use crate::support::tiny_build::{TinyBuild, codes, said};
use crate::support::tiny_gguf::Random;
use crate::support::tree;
use crate::support::web::{Reply, Server};
use kiln::base::hash_bytes;

const BREAD: &str = "bread and butter";
const CHEESE: &str = "cheese and grapes";

/// A plan of two files: one lies beside it, one is on a web server.
struct Pantry {
    root: tempfile::TempDir,
    cheese: String,
}

impl Pantry {
    fn new() -> Pantry {
        let server = Server::new(|_, request| Reply::range(CHEESE.as_bytes(), request));
        let pantry = Pantry {
            root: tempfile::tempdir().unwrap(),
            cheese: server.url("/cheese"),
        };
        let stage = |name: &str, url: &str, food: &str| {
            format!(
                "{name} = {{ kind = 'fetch', url = '{url}', sha256 = '{}' }}\n",
                sha256(food.as_bytes())
            )
        };
        let stages = stage("bread", "file:bread", BREAD) + &stage("cheese", &pantry.cheese, CHEESE);
        fs::write(
            pantry.root.path().join("pantry.toml"),
            format!("[plan]\nname = 'p'\n[stage]\n{stages}"),
        )
        .unwrap();
        fs::write(pantry.root.path().join("bread"), BREAD).unwrap();
        pantry
    }

    fn build(&self, room: &str, stages: &[&str]) -> Output {
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.current_dir(self.root.path())
            .args(["build", "--json", "pantry.toml"])
            .args(stages);
        kiln.args([
            "--cache",
            &format!("{room}/cache"),
            "--out",
            &format!("{room}/out"),
        ])
        .output()
        .unwrap()
    }

    /// A room in which the bread is there, and half of the cheese.
    fn half_built(&self, room: &str) -> PathBuf {
        let _ = fs::remove_dir_all(self.root.path().join(room));
        let output = self.build(room, &["bread"]);
        assert!(output.status.success(), "{}", said(&output));
        let room = self.root.path().join(room);
        let partial = room
            .join("cache/partial")
            .join(hash_bytes(self.cheese.as_bytes()).hex());
        fs::create_dir_all(&partial).unwrap();
        fs::write(partial.join("download"), &CHEESE[..9]).unwrap();
        fs::write(partial.join("etag"), "\"one\"").unwrap();
        room
    }

    fn written(&self, room: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        tree::files(&self.root.path().join(room).join("out"))
    }
}

/// All files below `root`, by their paths from there.
fn all_files(root: &Path) -> Vec<PathBuf> {
    let found = Command::new("find")
        .arg(root)
        .args(["-type", "f", "-printf", "%P\\n"])
        .output()
        .unwrap();
    let mut files: Vec<PathBuf> = String::from_utf8(found.stdout)
        .unwrap()
        .lines()
        .map(PathBuf::from)
        .collect();
    files.sort();
    files
}

/// What may befall a file; `None` removes it.
fn damages(good: &[u8], random: &mut Random) -> Vec<(String, Option<Vec<u8>>)> {
    let mut damages = vec![
        ("removed".into(), None),
        ("emptied".into(), Some(vec![])),
        (
            "garbage".into(),
            Some((0..good.len()).map(|_| random.bits() as u8).collect()),
        ),
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

/// Where somebody must decide: a folder that no longer says that it is kiln's.
fn must_ask(file: &Path, bytes: Option<&[u8]>) -> Option<&'static str> {
    match (file.file_name()?.to_str()?, bytes) {
        ("layout", Some(_)) => Some("kiln::store::layout"),
        ("layout", None) => Some("kiln::store::foreign"),
        (".kiln.json", None) => Some("kiln::publish::foreign"),
        _ => None,
    }
}

#[test]
fn any_damage_to_any_file_costs_at_most_one_failed_build() {
    let pantry = Pantry::new();
    let whole = pantry.build("whole", &[]);
    assert!(whole.status.success(), "{}", said(&whole));
    let expected = pantry.written("whole");
    assert_eq!(expected.len(), 4, "bread, cheese, a receipt and sums");
    // Always the same folder: what notes are about has its path.
    let name = "room";
    let files = all_files(&pantry.half_built(name));
    for room in ["actions", "blobs", "last", "layout", "notes", "partial"] {
        assert!(
            files
                .iter()
                .any(|file| file.starts_with(Path::new("cache").join(room))),
            "{room} in {files:?}"
        );
    }

    let mut random = Random::of("damage", 1);
    let (mut built, mut refused) = (0, 0);
    for file in &files {
        let good = fs::read(pantry.half_built(name).join(file)).unwrap();
        for (what, bytes) in damages(&good, &mut random) {
            for keeps_out in [true, false] {
                let room = pantry.half_built(name);
                let path = room.join(file);
                fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
                match &bytes {
                    Some(bytes) => fs::write(&path, bytes).unwrap(),
                    None => fs::remove_file(&path).unwrap(),
                }
                if !keeps_out {
                    fs::remove_dir_all(room.join("out")).unwrap();
                }
                let is_there =
                    |code: &&str| *code != "kiln::publish::foreign" || room.join("out").exists();
                let asks = must_ask(file, bytes.as_deref()).filter(is_there);
                let first = pantry.build(name, &[]);
                let case = format!(
                    "{}: {what}, artifacts kept: {keeps_out}: {}",
                    file.display(),
                    said(&first)
                );
                built += usize::from(first.status.success());
                refused += usize::from(!first.status.success());
                if let Some(code) = asks {
                    assert_eq!(codes(&first), [code], "{case}");
                } else if first.status.success() {
                    assert_eq!(pantry.written(name), expected, "{case}");
                } else {
                    assert_eq!(codes(&first).len(), 1, "{case}");
                    let second = pantry.build(name, &[]);
                    assert!(
                        second.status.success(),
                        "{case}\nand then {}",
                        said(&second)
                    );
                    assert_eq!(pantry.written(name), expected, "{case}");
                }
            }
        }
    }
    println!(
        "{} files, {built} builds succeeded, {refused} failed",
        files.len()
    );
    assert!(
        built > refused && refused > 0,
        "{built} succeeded, {refused} failed"
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
fn clocks_and_copies_change_nothing() {
    let tiny = TinyBuild::new();
    let expected = tiny.whole();
    let whole = tiny.room("whole");
    let (parts, _) = tiny.build_to_end("whole");
    let day = Duration::from_secs(86_400);
    for (name, copy) in [
        ("copied", "-r"),
        ("with its times", "-a"),
        ("in 1970", "-a"),
        ("in a time to come", "-a"),
        ("without notes", "-a"),
    ] {
        let room = tiny.room(name);
        assert!(
            Command::new("cp")
                .arg(copy)
                .arg(&whole)
                .arg(&room)
                .status()
                .unwrap()
                .success()
        );
        match name {
            "in 1970" => set_times(&room, SystemTime::UNIX_EPOCH),
            "in a time to come" => set_times(&room, SystemTime::now() + 400 * day),
            "without notes" => fs::remove_dir_all(room.join("cache/notes")).unwrap(),
            _ => {}
        }
        assert_eq!(tiny.build_to_end(name), (parts, 0), "{name}");
        assert_eq!(tiny.written(name), expected, "{name}");
        assert!(tiny.is_whole(name), "{name}");
        // What was not there before is found next to what was.
        fs::remove_dir_all(room.join("out")).unwrap();
        let moved = tiny.room(&format!("{name}, moved"));
        fs::rename(&room, &moved).unwrap();
        assert_eq!(
            tiny.build_to_end(&format!("{name}, moved")),
            (parts, 0),
            "{name}"
        );
        assert_eq!(tiny.written(&format!("{name}, moved")), expected, "{name}");
    }
}
