//! Scripts for Windows PowerShell 5.1, which every Windows has.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::profile;
use super::scripts::{ANSWER, COMPLETE, LIMITED_CONFIG, NO_RUNNER, PART, PROFILE, Scripts};
use crate::artifact::bundle::PROMPT;
use crate::base::{Code, Problem, Result};

/// Windows PowerShell.
pub(super) struct Windows;

/// Longest command line of `cmd.exe`, the shell that OpenSSH starts on Windows.
const MAX_COMMAND_LINE: usize = 8191;

/// The beginning of each script: errors end it, no progress bars, and output in UTF-8.
const BEGINNING: &str = "$ErrorActionPreference = 'Stop'\n$ProgressPreference = \
                         'SilentlyContinue'\ntry { [Console]::OutputEncoding = [Text.Encoding]::UTF8 } catch { }\n";

/// What the runner writes to its standard error.
const ERRORS: &str = "kiln-errors.txt";

/// Milliseconds between two samples, and samples before the run.
const SAMPLE_MS: u32 = 500;
const IDLE_SAMPLES: u32 = 6;

impl Scripts for Windows {
    fn default_runner(&self) -> &'static str {
        "C:/kiln/genie"
    }

    fn program(&self) -> &'static str {
        "genie-t2t-run.exe"
    }

    fn has_cat(&self) -> bool {
        false
    }

    /// The script in base64: neither `cmd.exe` nor PowerShell nor a POSIX shell reads anything into
    /// it.
    fn command_line(&self, script: &str) -> Result<String> {
        let mut utf16 = vec![];
        for unit in format!("{BEGINNING}{script}").encode_utf16() {
            utf16.extend(unit.to_le_bytes());
        }
        let encoded = STANDARD.encode(utf16);
        let line = format!("powershell -NoProfile -NonInteractive -EncodedCommand {encoded}");
        if line.len() > MAX_COMMAND_LINE {
            let message = format!(
                "a command of {} characters; Windows takes {MAX_COMMAND_LINE}",
                line.len()
            );
            return Err(Problem::new(Code::MeasureDevice, message)
                .help("choose shorter names for the bundle and the folder `runner`"));
        }
        Ok(line)
    }

    /// It hashes all files of the folder: their names need not be in the command line.
    fn probe(&self, runner: &str, folder: &str, _names: &[&str]) -> String {
        format!(
            "if (-not (Test-Path -LiteralPath {program} -PathType Leaf)) {{ '{NO_RUNNER}' }} else \
             {{\nNew-Item -ItemType Directory -Force -Path {folder} | Out-Null\nGet-ChildItem \
             -LiteralPath {folder} -File | ForEach-Object {{\nif ($_.Name.EndsWith('{PART}')) {{ \
             Remove-Item -LiteralPath $_.FullName -Force }}\nelse {{ (Get-FileHash -Algorithm \
             SHA256 -LiteralPath $_.FullName).Hash.ToLower() + '  ' + $_.Name }} }}\n}}",
            program = literal(&format!("{runner}/{}", self.program())),
            folder = literal(folder),
        )
    }

    fn accept(&self, folder: &str, name: &str, sha256: &str) -> String {
        format!(
            "Set-Location -LiteralPath {folder}\nif ((Get-FileHash -Algorithm SHA256 -LiteralPath \
             {part}).Hash -eq {sum}) {{\nMove-Item -Force -LiteralPath {part} -Destination \
             {name}\n'{COMPLETE}' }}",
            folder = literal(folder),
            part = literal(&format!("{name}{PART}")),
            name = literal(name),
            sum = literal(sha256),
        )
    }

    /// The peak of a process is gone when it has ended. Without a reference to its handle, it has
    /// no exit code. The battery's rate is in mW and its voltage in mV.
    fn run(&self, runner: &str, folder: &str, prompt: Option<&str>) -> String {
        let prompt = match prompt {
            None => format!("'--prompt_file', '{PROMPT}'"),
            // Start-Process does not quote arguments.
            Some(text) => format!("'-p', {}", literal(&format!("\"{text}\""))),
        };
        format!(
            "Set-Location -LiteralPath {folder}\nRemove-Item '{PROFILE}', '{ANSWER}', '{ERRORS}' -Force \
             -ErrorAction SilentlyContinue\n$env:ADSP_LIBRARY_PATH = {runner}\n$env:PATH = \
             {runner} + ';' + $env:PATH\nGet-ChildItem \"$env:windir\\System32\\DriverStore\\\
             FileRepository\" -Recurse -Filter HtpUsrDrv.dll -ErrorAction SilentlyContinue | \
             Select-Object -First 1 | ForEach-Object {{ '{driver} ' + \
             $_.VersionInfo.FileVersion }}\nfunction Battery($of) {{\n$b = Get-CimInstance \
             -Namespace root/wmi -ClassName BatteryStatus -ErrorAction SilentlyContinue | \
             Select-Object -First 1\nif ($b -and $b.Voltage) {{\n$state = 'Charging'; if \
             ($b.Discharging) {{ $state = 'Discharging' }}\n\"$of $([int64]($b.DischargeRate * \
             1000000 / $b.Voltage)) $($b.Voltage * 1000) $state\" }} }}\nfor ($i = 0; $i -lt \
             {IDLE_SAMPLES}; $i++) {{ Battery '{idle}'; Start-Sleep -Milliseconds {SAMPLE_MS} \
             }}\n$p = Start-Process -FilePath {program} -ArgumentList '-c', '{LIMITED_CONFIG}', \
             {prompt}, '--profile', '{PROFILE}' -NoNewWindow -PassThru -RedirectStandardOutput \
             '{ANSWER}' -RedirectStandardError '{ERRORS}'\n$handle = $p.Handle\nwhile (-not \
             $p.HasExited) {{\n$p.Refresh()\n\"VmHWM: $([int64]($p.PeakWorkingSet64 / 1024)) \
             kB\"\nBattery '{battery}'\nStart-Sleep -Milliseconds {SAMPLE_MS}\n}}\n\"{exit} \
             $($p.ExitCode)\"\nif ($p.ExitCode -eq 0) {{ Get-Content -Raw '{PROFILE}' }}\nelse {{ \
             Get-Content '{ANSWER}', '{ERRORS}' -Tail 20 }}",
            folder = literal(folder),
            runner = literal(runner),
            program = literal(&format!("{runner}/{}", self.program())),
            driver = profile::DRIVER,
            idle = profile::IDLE,
            battery = profile::BATTERY,
            exit = profile::EXIT,
        )
    }
}

/// A string of PowerShell in which nothing is replaced.
fn literal(text: &str) -> String {
    // PowerShell takes four other characters for the same quote.
    let mut literal = String::from("'");
    for c in text.chars() {
        literal.push(c);
        if matches!(c, '\'' | '\u{2018}'..='\u{201b}') {
            literal.push(c);
        }
    }
    literal + "'"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_base64_of_utf16() {
        let line = Windows.command_line("'é'").unwrap();
        let encoded = line.rsplit(' ').next().unwrap();
        let bytes = STANDARD.decode(encoded).unwrap();
        let units: Vec<u16> = bytes
            .chunks(2)
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
            .collect();
        assert_eq!(
            String::from_utf16(&units).unwrap(),
            format!("{BEGINNING}'é'")
        );
        let problem = Windows.command_line(&"x".repeat(4000)).unwrap_err();
        assert!(problem.message.contains("Windows takes 8191"), "{problem}");
    }

    #[test]
    fn each_script_fits_into_a_command_line() {
        let folder = "C:/kiln/genie/bundles/a-name-of-usual-length-for-a-bundle";
        for script in [
            Windows.probe("C:/kiln/genie", folder, &[]),
            Windows.accept(folder, "model_part_10_of_10.bin", &"0".repeat(64)),
            Windows.run("C:/kiln/genie", folder, Some("What is gravity?")),
        ] {
            Windows.command_line(&script).unwrap();
        }
    }

    #[test]
    fn quotes_in_names_are_doubled() {
        assert_eq!(literal("it's $x"), "'it''s $x'");
    }
}
