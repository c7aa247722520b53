//! A laptop with Windows behind a real sshd on this machine, with a stand-in for PowerShell.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::phone::{PROFILE, Phone};
use crate::support::peers::{installed, stdout_of};
use crate::support::scripts::write_script;

const POWERSHELL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/it/on_device/powershell.py"
);

/// A fake of Qualcomm's runner for Windows.
const RUNNER: &str = r#"#!/bin/sh
[ "$*" = '-c kiln-config.json --prompt_file prompt.txt --profile kiln-profile.json' ] || { echo "usage: $*"; exit 1; }
[ "$ADSP_LIBRARY_PATH" = C:/kiln/genie ] || { echo 'cannot load the skel'; exit 1; }
grep -q '"use-mmap":false' kiln-config.json || { echo 'the binary is mapped'; exit 1; }
sha256sum -c '{phone}/genie/sums' >&2 || exit 1
cp '{phone}/profile' kiln-profile.json
"#;

/// sshd, until it is dropped.
pub struct Laptop {
    pub phone: Phone,
    sshd: Child,
}

impl Laptop {
    /// The laptop, called `laptop` in the configuration of ssh.
    pub fn new() -> Laptop {
        let phone = Phone::of_platform("windows");
        let windows = phone.path("windows");
        let genie = windows.join("C:/kiln/genie");
        fs::create_dir_all(&genie).unwrap();
        let runner = RUNNER.replace(
            "{phone}",
            phone.path("").to_str().unwrap().trim_end_matches('/'),
        );
        write_script(&genie.join("genie-t2t-run.exe"), &runner);
        phone.put("profile", PROFILE);

        let ssh = phone.path("ssh");
        fs::create_dir_all(&ssh).unwrap();
        let file = |name: &str| ssh.join(name).display().to_string();
        for key in ["host", "user"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f", &file(key)]);
            stdout_of(&mut keygen);
        }
        let bin = phone.path("windows/bin");
        fs::create_dir_all(&bin).unwrap();
        let powershell = format!(
            "#!/bin/sh\nexport PYTHONPATH='{}' KILN_TEST_WINDOWS='{}'\nexec python3 '{POWERSHELL}' \
             \"$@\"\n",
            installed().display(),
            windows.display(),
        );
        write_script(&bin.join("powershell"), &powershell);
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {host}\nPidFile none\nStrictModes no\n\
             AuthorizedKeysFile {user}.pub\nPasswordAuthentication no\nUsePAM no\n\
             PermitRootLogin yes\nSubsystem sftp internal-sftp -d {windows}\n\
             SetEnv PATH={bin}:/usr/local/bin:/usr/bin:/bin\n",
            host = file("host"),
            user = file("user"),
            windows = windows.display(),
            bin = bin.display(),
        );
        fs::write(ssh.join("sshd_config"), config).unwrap();
        let client = format!(
            "Host laptop\nHostName 127.0.0.1\nPort {port}\nIdentityFile {}\nIdentitiesOnly yes\n\
             StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n",
            file("user")
        );
        fs::write(ssh.join("config"), client).unwrap();
        for program in ["ssh", "scp"] {
            let script = format!(
                "#!/bin/sh\nexec /usr/bin/{program} -F '{}' \"$@\"\n",
                file("config")
            );
            write_script(&phone.path("../bin").join(program), &script);
        }
        // sshd needs it when root starts it.
        let _ = fs::create_dir("/run/sshd");
        let mut sshd = Command::new("/usr/sbin/sshd");
        sshd.args(["-D", "-f", &file("sshd_config"), "-E", &file("log")]);
        let sshd = sshd.stdin(Stdio::null()).spawn();
        let mut laptop = Laptop {
            sshd: sshd.expect("apt-get install openssh-server"),
            phone,
        };
        laptop.wait(&ssh.join("log"));
        laptop
    }

    /// Waits until sshd listens.
    fn wait(&mut self, log: &Path) {
        let start = Instant::now();
        loop {
            let text = fs::read_to_string(log).unwrap_or_default();
            if text.contains("Server listening") {
                return;
            }
            let ended = self.sshd.try_wait().unwrap().is_some();
            assert!(
                !ended && start.elapsed() < Duration::from_secs(60),
                "{text}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Laptop {
    fn drop(&mut self) {
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}
