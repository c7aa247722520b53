"""A stand-in for Windows PowerShell. It parses the scripts of kiln, reads paths, sums and arguments
out of them, and does below the folder `windows`, which has the drive C:, what they are for. Samples
of memory and power and the version of the driver are its own."""

import base64
import hashlib
import os
import re
import subprocess
import sys

import tree_sitter
import tree_sitter_powershell

WINDOWS = os.environ["KILN_TEST_WINDOWS"]
BEGINNING = """$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
try { [Console]::OutputEncoding = [Text.Encoding]::UTF8 } catch { }
"""
RUNNER = "C:/kiln/genie"


def say(line):
    sys.stdout.write(line + "\r\n")
    sys.stdout.flush()


def here(path):
    assert path.startswith("C:/"), path
    return os.path.join(WINDOWS, path)


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def probe(folder):
    if not os.path.isfile(here(RUNNER + "/genie-t2t-run.exe")):
        return say("kiln no runner")
    os.makedirs(here(folder), exist_ok=True)
    for name in sorted(os.listdir(here(folder))):
        path = os.path.join(here(folder), name)
        if name.endswith(".kiln-part"):
            os.remove(path)
        else:
            say(sha256(path) + "  " + name)


def accept(folder, part, expected, part_again, name):
    assert part == part_again == name + ".kiln-part", (part, name)
    if sha256(os.path.join(here(folder), part)) == expected:
        os.replace(os.path.join(here(folder), part), os.path.join(here(folder), name))
        say("kiln complete")


def run(folder, runner, arguments):
    for name in ["kiln-profile.json", "kiln-answer.txt", "kiln-errors.txt"]:
        if os.path.exists(os.path.join(here(folder), name)):
            os.remove(os.path.join(here(folder), name))
    say("kiln driver 1.0.3510.0")
    say("kiln idle -500000 12000000 Discharging")
    environment = {**os.environ, "ADSP_LIBRARY_PATH": runner}
    process = subprocess.Popen(
        [here(runner + "/genie-t2t-run.exe"), *arguments],
        cwd=here(folder),
        env=environment,
        stdout=open(os.path.join(here(folder), "kiln-answer.txt"), "w"),
        stderr=subprocess.STDOUT,
    )
    say("VmHWM: 1000 kB")
    say("kiln battery -750000 12000000 Discharging")
    code = process.wait()
    say("VmHWM: 200000 kB")
    say("kiln battery -750000 12000000 Discharging")
    say(f"kiln exit {code}")
    text = "kiln-profile.json" if code == 0 else "kiln-answer.txt"
    say(open(os.path.join(here(folder), text)).read())


def check_syntax(script):
    language = tree_sitter.Language(tree_sitter_powershell.language())
    tree = tree_sitter.Parser(language).parse(script.encode())
    assert not tree.root_node.has_error, tree.root_node


def main():
    *options, encoded = sys.argv[1:]
    assert options == ["-NoProfile", "-NonInteractive", "-EncodedCommand"], options
    script = base64.b64decode(encoded, validate=True).decode("utf-16-le")
    check_syntax(script)
    assert script.startswith(BEGINNING), script
    script, end = script[len(BEGINNING) :].rsplit("\n", 1)
    assert end == "echo 'kiln end'", end
    text = r"'((?:[^']|'')*)'"
    if script.startswith("if (-not (Test-Path"):
        [program] = re.findall(rf"Test-Path -LiteralPath {text} -PathType Leaf", script)
        folders = re.findall(rf"(?:-Path|Get-ChildItem -LiteralPath) {text}", script)
        assert program == RUNNER + "/genie-t2t-run.exe" and len(set(folders)) == 1, script
        probe(folders[0])
    elif "Get-FileHash" in script:
        pattern = (
            rf"Set-Location -LiteralPath {text}\n"
            rf"if \(\(Get-FileHash -Algorithm SHA256 -LiteralPath {text}\)\.Hash -eq {text}\) \{{\n"
            rf"Move-Item -Force -LiteralPath {text} -Destination {text}\n'kiln complete' \}}"
        )
        accept(*re.fullmatch(pattern, script).groups())
    else:
        [folder] = re.findall(rf"^Set-Location -LiteralPath {text}$", script, re.M)
        [runner] = re.findall(rf"^\$env:ADSP_LIBRARY_PATH = {text}$", script, re.M)
        [program, arguments] = re.findall(
            rf"Start-Process -FilePath {text} -ArgumentList (.*?) -NoNewWindow", script
        )[0]
        assert program == runner + "/genie-t2t-run.exe", program
        run(folder, runner, re.findall(text, arguments))
    say("kiln end")


main()
