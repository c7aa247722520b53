//! Scripts for the POSIX shells of Android and Linux.

use super::profile;
use super::scripts::{ANSWER, COMPLETE, LIMITED_CONFIG, NO_RUNNER, PART, PROFILE, Scripts};
use crate::artifact::bundle::PROMPT;
use crate::base::{Result, quoted};

/// A POSIX shell.
pub(super) struct Posix {
    pub(super) default_runner: &'static str,
}

impl Scripts for Posix {
    fn default_runner(&self) -> &'static str {
        self.default_runner
    }

    fn program(&self) -> &'static str {
        "genie-t2t-run"
    }

    fn has_cat(&self) -> bool {
        true
    }

    fn command_line(&self, script: &str) -> Result<String> {
        Ok(format!("sh -c {}", quoted(script)))
    }

    fn probe(&self, runner: &str, folder: &str, names: &[&str]) -> String {
        let names: Vec<String> = names.iter().map(|name| quoted(name)).collect();
        format!(
            "if [ ! -x {runner}/{program} ]; then echo '{NO_RUNNER}'; else\nmkdir -p {folder} && \
             cd {folder} || exit 1\nrm -f ./*{PART}\nsha256sum -- {names} 2>/dev/null\nfi",
            runner = quoted(runner),
            program = self.program(),
            folder = quoted(folder),
            names = names.join(" "),
        )
    }

    fn accept(&self, folder: &str, name: &str, sha256: &str) -> String {
        format!(
            "cd {folder} || exit 1\ncase \"$(sha256sum {part})\" in {sum}*) mv -f {part} {name} \
             && echo '{COMPLETE}';; esac",
            folder = quoted(folder),
            part = quoted(&format!("{name}{PART}")),
            name = quoted(name),
            sum = quoted(sha256),
        )
    }

    /// A process that has ended has no `VmHWM`.
    fn run(&self, runner: &str, folder: &str, prompt: Option<&str>) -> String {
        let prompt = match prompt {
            None => format!("--prompt_file {PROMPT}"),
            Some(text) => format!("-p {}", quoted(text)),
        };
        format!(
            "cd {folder} || exit 1\nrm -f {PROFILE} {ANSWER}\nbattery() {{ for of in current_now \
             voltage_now status; do\nv=; {{ read -r v < /sys/class/power_supply/battery/$of; }} \
             2>/dev/null; printf ' %s' \"${{v:-?}}\"\ndone; echo; }}\nLD_LIBRARY_PATH={runner} \
             ADSP_LIBRARY_PATH={runner} {runner}/{program} -c {LIMITED_CONFIG} {prompt} --profile \
             {PROFILE} > {ANSWER} 2>&1 < /dev/null &\npid=$!\nwhile grep VmHWM /proc/$pid/status \
             2>/dev/null; do\nprintf '{battery}'; battery\nsleep 0.5 2>/dev/null || sleep \
             1\ndone\nwait $pid; code=$?\necho \"{exit} $code\"\nif [ $code = 0 ]; then cat \
             {PROFILE}; else tail -c 2000 {ANSWER}; fi\necho",
            folder = quoted(folder),
            runner = quoted(runner),
            program = self.program(),
            battery = profile::BATTERY,
            exit = profile::EXIT,
        )
    }
}
