//! Connections to a device: Android's `adb`, or `ssh`.
//!
//! Programs are called without a shell of this machine. The device's shell gets one command line
//! with a script, which prints a marker at its end.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::scripts::Scripts;
use crate::action::Job;
use crate::base::{Code, Context, Problem, Result, duration, quoted, tail};

/// The last line that every script prints. If it is missing, the connection broke.
const END: &str = "kiln end";
/// Cap on the output of a call. No script of kiln prints as much.
const MAX_OUTPUT_BYTES: u64 = 4 << 20;
/// How much of the end of an output is shown.
const TAIL_BYTES: usize = 2048;
/// How often a program is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Time limit for sending a file, in addition to the time at the rate below.
const SEND_LIMIT: Duration = Duration::from_secs(60);
/// The slowest wireless connection that is supported.
const SEND_BYTES_PER_SECOND: u64 = 500_000;

/// No prompt for a password, and detection of a dead connection.
const SSH_OPTIONS: [&str; 6] = [
    "-o",
    "BatchMode=yes",
    "-o",
    "ConnectTimeout=20",
    "-o",
    "ServerAliveInterval=15",
];

/// The form of a device's name. It has no special characters of a shell, and cannot be an option.
const NAME: &str = "letters, digits, `.`, `_`, `@` and `-`, for adb also `:`, the first a letter or a digit, 200 \
     at most";

/// The connection to a device.
pub enum Transport {
    /// An Android device by its serial number, or its address and port.
    Adb(String),
    /// A host or `USER@HOST`, as in the configuration of ssh.
    Ssh(String),
}

impl Transport {
    /// Parses `adb:SERIAL` or `ssh:HOST`. The error is a description of the form.
    pub fn parse(device: &str) -> std::result::Result<Transport, &'static str> {
        let (transport, name): (fn(String) -> Transport, &str) = match device.split_once(':') {
            Some(("adb", serial)) => (Transport::Adb, serial),
            Some(("ssh", host)) => (Transport::Ssh, host),
            _ => return Err("`adb:SERIAL` (`adb devices` lists serial numbers) or `ssh:HOST`"),
        };
        // `scp` ends the name of a host at a colon.
        let others = match transport(String::new()) {
            Transport::Adb(_) => "._:@-",
            Transport::Ssh(_) => "._@-",
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
        if name.len() > 200
            || !name.starts_with(|c: char| c.is_ascii_alphanumeric())
            || !name.chars().all(is_plain)
        {
            return Err(NAME);
        }
        Ok(transport(name.into()))
    }

    /// Runs `script` on the device, in the language of `scripts`, and returns its output.
    pub(super) fn run(
        &self,
        scripts: &dyn Scripts,
        script: &str,
        limit: Duration,
        job: &Job,
    ) -> Result<String> {
        let line = scripts.command_line(&format!("{script}\necho '{END}'"))?;
        let output = self.call(self.shell(&line), Stdio::null(), limit, job)?;
        match output.stdout.trim_end().strip_suffix(END) {
            Some(stdout) if output.status.success() => Ok(stdout.into()),
            _ => Err(self.broken("a command did not complete", &output)),
        }
    }

    /// Copies the file `local`, which has `bytes` bytes, to `remote` on the device.
    pub(super) fn send(
        &self,
        scripts: &dyn Scripts,
        local: &Path,
        bytes: u64,
        remote: &str,
        job: &Job,
    ) -> Result<()> {
        let limit = SEND_LIMIT + Duration::from_secs(bytes / SEND_BYTES_PER_SECOND);
        let output = match self {
            Transport::Ssh(host) if !scripts.has_cat() => {
                let mut command = Command::new("scp");
                // By SFTP, which has no shell at the other end.
                command.args(["-s", "-q"]).args(SSH_OPTIONS).arg("--");
                command.arg(local).arg(format!("{host}:{remote}"));
                self.call(command, Stdio::null(), limit, job)?
            }
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
        if output.status.success() {
            Ok(())
        } else {
            Err(self.broken(&format!("{remote} did not arrive"), &output))
        }
    }

    /// The command that runs `script` in the device's shell.
    fn shell(&self, script: &str) -> Command {
        match self {
            Transport::Adb(serial) => {
                let mut command = Command::new("adb");
                command.args(["-s", serial, "shell", script]);
                command
            }
            Transport::Ssh(host) => {
                let mut command = Command::new("ssh");
                command.args(SSH_OPTIONS).args(["--", host, script]);
                command
            }
        }
    }

    /// Runs `command` until it ends, successfully or not.
    fn call(
        &self,
        mut command: Command,
        stdin: Stdio,
        limit: Duration,
        job: &Job,
    ) -> Result<CallOutput> {
        // Files and not pipes, which a background process (the adb server) could keep open.
        let folder = job.scratch()?;
        let (stdout, stderr) = (folder.join("stdout"), folder.join("stderr"));
        // Not in kiln's process group, since kiln itself ends the call on Ctrl-C.
        command.env_remove("HF_TOKEN");
        let mut child = command
            .stdin(stdin)
            .stdout(create(&stdout)?)
            .stderr(create(&stderr)?)
            .process_group(0)
            .spawn()
            .map_err(|error| self.no_program(&error))?;
        let status = match self.wait(&mut child, [&stdout, &stderr], limit, job) {
            Ok(status) => status,
            Err(problem) => {
                // Fails only if the group has no process any more.
                let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
                child
                    .wait()
                    .context(Code::Io, || "end a call to a device".into())?;
                return Err(problem);
            }
        };
        Ok(CallOutput {
            status,
            stdout: read_tail(&stdout)?.replace('\r', ""),
            stderr: read_tail(&stderr)?,
        })
    }

    fn wait(
        &self,
        child: &mut Child,
        outputs: [&Path; 2],
        limit: Duration,
        job: &Job,
    ) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = child
                .try_wait()
                .context(Code::Io, || "wait for a device".into())?
            {
                return Ok(status);
            }
            job.check_cancelled()?;
            if start.elapsed() > limit {
                let what = format!("{self} did not answer within {}", duration(limit));
                return Err(Problem::new(Code::MeasureDevice, what).help(self.advice()));
            }
            for output in outputs {
                if let Ok(metadata) = fs::metadata(output)
                    && metadata.len() > MAX_OUTPUT_BYTES
                {
                    return Err(Problem::new(
                        Code::MeasureDevice,
                        format!("{self} printed more than 4 MiB"),
                    ));
                }
            }
            sleep(POLL_INTERVAL);
        }
    }

    fn broken(&self, what: &str, output: &CallOutput) -> Problem {
        let mut problem = Problem::new(
            Code::MeasureDevice,
            format!("{self}: {what} ({})", output.status),
        )
        .help(self.advice());
        for text in [&output.stdout, &output.stderr] {
            let tail = sanitized_tail(text);
            if !tail.is_empty() {
                problem.causes.push(tail);
            }
        }
        problem
    }

    fn advice(&self) -> String {
        let command = match self {
            Transport::Adb(serial) => format!("adb -s {serial} shell echo there"),
            Transport::Ssh(host) => format!("ssh -o BatchMode=yes {host} echo there"),
        };
        format!(
            "try `{command}`, then run the same command again: complete files are not sent \
             again"
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

/// Exit status and output of a call.
struct CallOutput {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

fn create(path: &Path) -> Result<File> {
    File::create(path).context(Code::Io, || format!("make {}", path.display()))
}

fn read_tail(path: &Path) -> Result<String> {
    tail(path, MAX_OUTPUT_BYTES).context(Code::Io, || "read the output of a device".into())
}

/// The end of a text, without control characters except line breaks.
pub(super) fn sanitized_tail(text: &str) -> String {
    let start = text.floor_char_boundary(text.len().saturating_sub(TAIL_BYTES));
    text[start..]
        .trim()
        .replace(|c: char| c.is_control() && c != '\n', "\u{fffd}")
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
            "ssh:fe80::1",
            "ssh:a b",
            "ssh:a;b",
            "ssh:$(x)",
        ] {
            assert!(Transport::parse(bad).is_err(), "{bad}");
        }
        assert!(Transport::parse(&format!("adb:{}", "x".repeat(201))).is_err());
    }

    #[test]
    fn output_of_a_device_is_sanitized() {
        assert_eq!(sanitized_tail("\x1b[2J gone\nx "), "\u{fffd}[2J gone\nx");
        assert_eq!(sanitized_tail(&"é".repeat(4000)).chars().count(), 1024);
    }
}
