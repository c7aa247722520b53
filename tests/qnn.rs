//! The device room. Whatever needs the vendor's libraries is ignored unless asked for:
//! `KILN_QNN=<folder with libQnnHtp.so> cargo test --test qnn -- --ignored`.
//! Each such test runs in a process of its own (nextest) or alone: one context a process gives reproducible bytes.

use std::path::{Path, PathBuf};

use kiln::qnn::{Simulator, Soc, System, WeightEncoding, prove};

fn libraries() -> PathBuf {
    std::env::var_os("KILN_QNN").expect("KILN_QNN names the folder with libQnnHtp.so").into()
}

fn code<T>(result: kiln::base::Result<T>) -> String {
    result.err().map_or("no problem".into(), |problem| problem.code)
}

#[test]
fn a_missing_library_is_a_missing_tool() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(code(System::open(folder.path())), "kiln::tool_file_missing");
    assert_eq!(code(Simulator::load(folder.path(), b"binary")), "kiln::tool_file_missing");
    let soc = Soc::named("sm8650").unwrap();
    assert_eq!(code(prove(folder.path(), soc, WeightEncoding::F16)), "kiln::tool_file_missing");
}

#[test]
fn a_file_that_is_no_library_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("libQnnSystem.so"), b"clay, not code").unwrap();
    let problem = System::open(folder.path()).err().unwrap();
    assert_eq!(problem.code, "kiln::tool_missing");
    assert!(
        problem.to_string().contains("invalid ELF header") || problem.to_string().contains("too short"),
        "{problem}"
    );
}

#[test]
fn a_library_of_something_else_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let libm = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/libm.so.6", "/usr/lib/libm.so.6"];
    let Some(libm) = libm.map(Path::new).into_iter().find(|path| path.exists()) else { return };
    std::os::unix::fs::symlink(libm, folder.path().join("libQnnSystem.so")).unwrap();
    let problem = System::open(folder.path()).err().unwrap();
    assert_eq!(problem.code, "kiln::tool_missing");
    assert!(problem.message.contains("does not export QnnSystemInterface_getProviders"), "{problem}");
}

#[test]
#[ignore = "needs KILN_QNN"]
fn every_encoding_of_native_weights_computes_right() {
    let soc = Soc::named("sm8650").unwrap();
    let block = |bits, block, offsets| WeightEncoding::FloatBlock { bits, block, offsets };
    for encoding in
        [WeightEncoding::F16, block(4, 32, false), block(4, 32, true), block(8, 32, false), block(8, 16, false)]
    {
        let proof = prove(&libraries(), soc, encoding).unwrap();
        println!("{} {:.2e}", proof.encoding, proof.relative_rms_error);
    }
}
