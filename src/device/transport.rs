//! The way to a device: Android's `adb`, or `ssh`. Each call is a list of arguments that no shell
//! of this machine reads; what the device's shell reads is one quoted script, and it must say that
//! it came to its end.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::action::Job;
use crate::base::{Code, Context, Problem, Result, duration, quoted, tail};

/// The last line of every script: without it, the connection broke.
const END: &str = "kiln end";
/// More than any script of kiln's prints in the time it has.
const MAX_SAID_BYTES: u64 = 4 << 20;
/// How much of what a program said last is shown.
const STDERR_TAIL_BYTES: u64 = 2048;
/// How often is looked whether a program has ended.
const GLANCE: Duration = Duration::from_millis(20);
/// What a file is given to arrive, beside a second for each so many bytes: below the slowest
/// wireless connection worth waiting for.
const SEND_AT_LEAST: Duration = Duration::from_secs(60);
const SEND_BYTES_PER_SECOND: u64 = 500_000;

/// Of a device's name: no letter of it means anything to a shell, and none of them begins an
/// option.
const NAME: &str =
    "letters, digits, `.`, `_`, `:`, `@` and `-`, the first a letter or a digit, 200 at most";

/// A device, and how it is reached.
pub enum Transport {
    /// An Android device by its serial number, or its address and port.
    Adb(String),
    /// A host, or `USER@HOST`, as ssh's own configuration knows it.
    Ssh(String),
}

impl Transport {
    /// Reads `adb:SERIAL` or `ssh:HOST`; otherwise, what is expected.
    pub fn parse(device: &str) -> std::result::Result<Transport, &'static str> {
        let (how, name): (fn(String) -> Transport, &str) = match device.split_once(':') {
            Some(("adb", serial)) => (Transport::Adb, serial),
            Some(("ssh", host)) => (Transport::Ssh, host),
            _ => return Err("`adb:SERIAL` (`adb devices` lists serial numbers) or `ssh:HOST`"),
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._:@-".contains(c);
        if name.len() > 200
            || !name.starts_with(|c: char| c.is_ascii_alphanumeric())
            || !name.chars().all(is_plain)
        {
            return Err(NAME);
        }
        Ok(how(name.into()))
    }

    /// Has the device's shell run `script`, and gives what it prints.
    pub fn run(&self, script: &str, limit: Duration, job: &Job) -> Result<String> {
        let script = format!("sh -c {}", quoted(&format!("{script}\necho '{END}'")));
        let said = self.call(self.shell(&script), Stdio::null(), limit, job)?;
        match said.out.trim_end().strip_suffix(END) {
            Some(out) if said.status.success() => Ok(out.into()),
            _ => Err(self.broken("a command did not come to its end", &said)),
        }
    }

    /// Puts the file `local`, of `bytes` bytes, at `remote`.
    pub fn send(&self, local: &Path, bytes: u64, remote: &str, job: &Job) -> Result<()> {
        let limit = SEND_AT_LEAST + Duration::from_secs(bytes / SEND_BYTES_PER_SECOND);
        let said = match self {
            Transport::Adb(serial) => {
                let mut command = Command::new("adb");
                command.args(["-s", serial, "push"]).arg(local).arg(remote);
                self.call(command, Stdio::null(), limit, job)?
            }
            Transport::Ssh(_) => {
                let file =
                    File::open(local).context(Code::Io, || format!("open {}", local.display()))?;
                self.call(
                    self.shell(&format!("cat > {}", quoted(remote))),
                    file.into(),
                    limit,
                    job,
                )?
            }
        };
        if said.status.success() {
            Ok(())
        } else {
            Err(self.broken(&format!("{remote} did not arrive"), &said))
        }
    }

    fn shell(&self, script: &str) -> Command {
        match self {
            Transport::Adb(serial) => {
                let mut command = Command::new("adb");
                command.args(["-s", serial, "shell", script]);
                command
            }
            Transport::Ssh(host) => {
                let mut command = Command::new("ssh");
                // Nobody is there to type a password; a connection that died is noticed.
                command.args([
                    "-o",
                    "BatchMode=yes",
                    "-o",
                    "ConnectTimeout=20",
                    "-o",
                    "ServerAliveInterval=15",
                    "--",
                ]);
                command.args([host, script]);
                command
            }
        }
    }

    /// Runs `command` to its end, good or bad.
    fn call(&self, mut command: Command, stdin: Stdio, limit: Duration, job: &Job) -> Result<Said> {
        // Into files: what adb leaves running (its server) cannot hold the other end of a pipe.
        let [out, err] =
            ["said", "complained"].map(|name| job.scratch().map(|folder| folder.join(name)));
        let (out, err) = (out?, err?);
        let make = |path: &PathBuf| {
            File::create(path).context(Code::Io, || format!("make {}", path.display()))
        };
        // A group of its own: Ctrl-C is for kiln, which ends the call itself.
        command.env_remove("HF_TOKEN");
        let spawned = command
            .stdin(stdin)
            .stdout(make(&out)?)
            .stderr(make(&err)?)
            .process_group(0)
            .spawn();
        let mut child = spawned.map_err(|error| self.no_program(&error))?;
        let ended = self.attend(&mut child, [&out, &err], limit, job);
        if ended.is_err() {
            // Fails only when nobody is left.
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
            child
                .wait()
                .context(Code::Io, || "end a call to a device".into())?;
        }
        let status = ended?;
        let read = |path| {
            tail(path, MAX_SAID_BYTES).context(Code::Io, || "read what a device said".into())
        };
        Ok(Said {
            status,
            out: read(&out)?.replace('\r', ""),
            err: read(&err)?,
        })
    }

    fn attend(
        &self,
        child: &mut Child,
        said: [&PathBuf; 2],
        limit: Duration,
        job: &Job,
    ) -> Result<ExitStatus> {
        let begun = Instant::now();
        loop {
            if let Some(status) = child
                .try_wait()
                .context(Code::Io, || "wait for a device".into())?
            {
                return Ok(status);
            }
            job.check_cancelled()?;
            if begun.elapsed() > limit {
                let what = format!("{self} did not answer within {}", duration(limit));
                return Err(Problem::new(Code::MeasureDevice, what).help(self.advice()));
            }
            let too_long =
                |path: &&PathBuf| fs::metadata(path).is_ok_and(|file| file.len() > MAX_SAID_BYTES);
            if said.iter().any(too_long) {
                return Err(Problem::new(
                    Code::MeasureDevice,
                    format!("{self} says more than any answer of a device is long"),
                ));
            }
            sleep(GLANCE);
        }
    }

    fn broken(&self, what: &str, said: &Said) -> Problem {
        let mut problem = Problem::new(
            Code::MeasureDevice,
            format!("{self}: {what} ({})", said.status),
        )
        .help(self.advice());
        let words = [&said.out, &said.err].map(|text| stderr_tail(text));
        problem
            .causes
            .extend(words.into_iter().filter(|words| !words.is_empty()));
        problem
    }

    fn advice(&self) -> String {
        let try_it = match self {
            Transport::Adb(serial) => format!("adb -s {serial} shell echo there"),
            Transport::Ssh(host) => format!("ssh -o BatchMode=yes {host} echo there"),
        };
        format!(
            "try `{try_it}`, then run the same command again: files that arrived whole are not \
             sent again"
        )
    }

    fn no_program(&self, error: &io::Error) -> Problem {
        let (program, help) = match self {
            Transport::Adb(_) => (
                "adb",
                "install Android's platform tools: apt-get install adb",
            ),
            Transport::Ssh(_) => (
                "ssh",
                "install OpenSSH's client: apt-get install openssh-client",
            ),
        };
        let code = if error.kind() == ErrorKind::NotFound {
            Code::ToolMissing
        } else {
            Code::MeasureDevice
        };
        Problem::new(code, format!("`{program}` does not start"))
            .help(help)
            .because(error)
    }
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Transport::Adb(serial) => write!(f, "adb:{serial}"),
            Transport::Ssh(host) => write!(f, "ssh:{host}"),
        }
    }
}

/// What came of a call.
struct Said {
    status: ExitStatus,
    out: String,
    err: String,
}

/// The end of a text, fit for a terminal.
pub(super) fn stderr_tail(text: &str) -> String {
    let begin = text.floor_char_boundary(text.len().saturating_sub(STDERR_TAIL_BYTES as usize));
    let shown = |c: char| {
        if c.is_control() && c != '\n' {
            '\u{fffd}'
        } else {
            c
        }
    };
    text[begin..].trim().chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_a_plain_name() {
        for good in [
            "adb:R5CT1",
            "adb:192.168.1.7:5555",
            "adb:adb-R5-x._adb-tls-connect._tcp",
            "ssh:me@board-7.lan",
        ] {
            assert_eq!(
                Transport::parse(good).map(|link| link.to_string()),
                Ok(good.into())
            );
        }
        for bad in [
            "R5CT1",
            "usb:R5CT1",
            "adb:",
            "adb:-s",
            "ssh:-oProxyCommand=x",
            "ssh:a b",
            "ssh:a;b",
            "ssh:$(x)",
        ] {
            assert!(Transport::parse(bad).is_err(), "{bad}");
        }
        assert!(Transport::parse(&format!("adb:{}", "x".repeat(201))).is_err());
    }

    #[test]
    fn what_a_device_says_does_not_reach_the_terminal_as_it_is() {
        assert_eq!(stderr_tail("\x1b[2J gone\nx "), "\u{fffd}[2J gone\nx");
        assert_eq!(stderr_tail(&"é".repeat(4000)).chars().count(), 1024);
    }
}
