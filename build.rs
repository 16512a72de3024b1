//! Builds what goes into the binary besides its own code: the guest in `firmware/`.
//!
//! The guest is compiled by the same `rustc`, for the same host target, as everything else, so that nothing needs
//! to be installed besides an ordinary toolchain. It is called directly: flags that are meant for the program
//! (RUSTFLAGS, profiles) must not change the guest, and the same sources give the same image everywhere.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const SOURCES: &str = "firmware";
const IMAGE: &str = "guest.elf";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={SOURCES}");
    if let Err(problem) = build_guest() {
        eprintln!("{problem}");
        exit(1);
    }
}

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("{name} is not set; this program is to be run by cargo"))
}

fn build_guest() -> Result<(), String> {
    let host = variable("HOST")?;
    if !host.to_string_lossy().starts_with("x86_64-") {
        return Err(format!("lodger can be built on x86-64 Linux only, not on {}", host.display()));
    }
    let sources = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join(SOURCES);
    let image = PathBuf::from(variable("OUT_DIR")?).join(IMAGE);
    let mut compiler = Command::new(variable("RUSTC")?);
    compiler.arg(sources.join("main.rs")).arg("-o").arg(&image).arg("--target").arg(&host);
    compiler.args(["--edition=2024", "--crate-name=guest", "--crate-type=bin"]);
    for option in code_generation(&sources) {
        compiler.arg("-C").arg(option);
    }
    // No path of this machine in panic messages.
    compiler.arg("--remap-path-prefix").arg(with(&sources, "", "=firmware"));
    // Cargo has a linker configured for the target, which is the host unless somebody cross-compiles.
    if let Some(linker) = env::var_os("RUSTC_LINKER").filter(|_| env::var_os("TARGET") == Some(host)) {
        compiler.arg("-C").arg(with(Path::new(&linker), "linker=", ""));
    }
    run(&mut compiler)
}

fn with(path: &Path, before: &str, behind: &str) -> OsString {
    let mut text = OsString::from(before);
    text.push(path);
    text.push(behind);
    text
}

fn code_generation(sources: &Path) -> Vec<OsString> {
    let fixed = [
        "opt-level=s",
        "codegen-units=1",
        "lto=fat",
        "debuginfo=0",
        "strip=symbols",
        "overflow-checks=off",
        // Nothing unwinds; without this the image would need an unwinder.
        "panic=abort",
        "force-unwind-tables=no",
        // Linked at a fixed address, whatever the host's compiler does by default.
        "relocation-model=static",
        "link-arg=-static",
        "link-arg=-no-pie",
        // Neither C library nor start-up code.
        "link-arg=-nostartfiles",
        "link-arg=-nostdlib",
        "link-arg=-Wl,--build-id=none",
        "link-arg=-Wl,-z,max-page-size=4096",
    ];
    let mut options: Vec<OsString> = fixed.map(OsString::from).into();
    options.push("link-arg=-T".into());
    options.push(with(&sources.join("linker.ld"), "link-arg=", ""));
    options
}

fn run(compiler: &mut Command) -> Result<(), String> {
    let output = compiler
        .output()
        .map_err(|error| format!("cannot run {}: {error}", compiler.get_program().display()))?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!(
            "the embedded guest ({SOURCES}/) cannot be built ({}):\n{messages}\n\
             It needs what every Rust installation needs: rustc with the standard library of the host, and a C \
             compiler (`cc`) that links.\nThe command was: {compiler:?}",
            output.status
        ));
    }
    for line in messages.lines() {
        println!("cargo:warning={line}");
    }
    Ok(())
}
