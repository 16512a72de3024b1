//! `--config` and `--print-config`: guests described in a file.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::support::{Finished, Running, Scratch, lodger, program};

/// Runs the program in that directory, without input.
#[track_caller]
fn run_in(directory: &Path, arguments: &[&str]) -> Finished {
    Running::start(program().current_dir(directory).arg("run").args(arguments)).finish()
}

#[track_caller]
fn printed(directory: &Path, arguments: &[&str]) -> String {
    run_in(directory, &[&["--print-config"], arguments].concat()).with(0).silent().stdout
}

/// Runs the guest that these words describe.
#[track_caller]
fn described(text: &str, arguments: &[&str]) -> Finished {
    let scratch = Scratch::new();
    scratch.file("vm.toml", text.as_bytes());
    run_in(scratch.path(), &[&["--config", "vm.toml"], arguments].concat())
}

#[test]
fn what_is_printed_describes_the_same_guest() {
    let scratch = Scratch::new();
    scratch.file("a disk.img", &[0; 4096]);
    let flags = [
        "--memory=64M,prefault",
        "--cpus=2,threads=2",
        "--cpu=host,-nonstop_tsc",
        "--rng",
        "--disk=a disk.img,ro,serial=A \"B\"",
        "--disk=ephemeral,size=1M,iops=500",
        "--balloon",
        "--cmdline=say=\"hi\"",
        "--append=run=virtio;exit 7",
        "--console=file=out.txt",
    ];
    run_in(scratch.path(), &flags).with(7).silent();
    let output = || fs::read_to_string(scratch.at("out.txt")).unwrap();
    let by_flags = output();
    assert!(by_flags.contains("memory"), "{by_flags}");
    scratch.file("vm.toml", printed(scratch.path(), &flags).as_bytes());
    fs::remove_file(scratch.at("out.txt")).unwrap();
    // From elsewhere: its paths are absolute.
    run_in(Path::new("/"), &["--config", &scratch.at("vm.toml")]).with(7).silent();
    // Two runs differ in what is measured.
    let fixed = |text: &str| -> Vec<String> {
        let measured = ["MHz", "clock", "CMOS"];
        let lines = text.lines().filter(|line| !measured.iter().any(|word| line.contains(word)));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(fixed(&output()), fixed(&by_flags));
    // And it is the same once more.
    let text = fs::read_to_string(scratch.at("vm.toml")).unwrap();
    assert_eq!(printed(Path::new("/"), &["--config", &scratch.at("vm.toml")]), text);
}

#[test]
fn what_is_printed_is_short() {
    let here = Path::new("/");
    assert_eq!(printed(here, &[]), "memory = \"256M\"\ncpus = 1\n");
    let text = printed(here, &["vmlinuz", "--initrd", "a,b", "--name", "web", "--console", "virtio"]);
    let expected = "name = \"web\"\nmemory = \"256M\"\ncpus = 1\nconsole = \"virtio\"\n\n\
                    [kernel]\npath = \"/vmlinuz\"\ninitrd = \"/a,b\"\n";
    assert_eq!(text, expected);
}

#[test]
fn paths_in_a_file_begin_at_its_directory() {
    let scratch = Scratch::new();
    // With a comma, which no option could name.
    scratch.file("a,b.img", &[0; 512]);
    scratch.file("vm.toml", b"kernel.cmdline = 'quiet run=virtio;exit 9'\n[[disk]]\npath = 'a,b.img'\n");
    run_in(Path::new("/"), &["--config", &scratch.at("vm.toml")]).with(9).silent();
    run_in(scratch.path(), &["--config", "vm.toml"]).with(9).silent();
    let text = printed(scratch.path(), &["--config", "vm.toml"]);
    assert!(text.contains(&format!("path = \"{}\"", scratch.at("a,b.img"))), "{text}");
}

#[test]
fn options_replace_values_of_the_file_and_add_to_its_lists() {
    let scratch = Scratch::new();
    let text = "name='web'\nmemory='64M'\ncpus=2\ncpu='baseline'\nconsole='virtio,pty'\ncompletion='missing'\n\
                balloon='8M'\ndisk='/one'\nport='one,pty'\n\
                [kernel]\npath='/linux'\ncmdline='old'\nappend='a'\ninitrd='/one'\nentry='pvh'\nflat='0x1000'\n";
    scratch.file("vm.toml", text.as_bytes());
    let with = |arguments: &[&str]| printed(scratch.path(), &[&["--config", "vm.toml"], arguments].concat());
    let expected = "name = \"mail\"\nmemory = \"1G\"\ncpus = 3\nballoon = \"16M\"\ncompletion = \"off\"\n\n\
                    [kernel]\npath = \"/other\"\ninitrd = [\"/one\", \"/two\"]\ncmdline = \"new\"\n\
                    append = [\"a\", \"b\"]\nflat = \"0x2000,long\"\n\n\
                    [[disk]]\npath = \"/one\"\n\n[[disk]]\npath = \"/two\"\nro = true\n\n\
                    [[port]]\nname = \"one\"\npty = true\n\n[[port]]\nname = \"two\"\npty = true\n";
    let flags = [
        "/other",
        "--name=mail",
        "--memory=1G",
        "--cpus=3",
        "--cpu=host",
        "--console=stdio",
        "--completion=off",
        "--balloon=16M",
        "--disk=/two,ro",
        "--port=two,pty",
        "--cmdline=new",
        "--append=b",
        "--initrd=/two",
        "--entry=auto",
        "--flat=0x2000",
    ];
    assert_eq!(with(&flags), expected);
    // Without any, the file counts.
    let unchanged = with(&[]);
    for line in ["name = \"web\"", "cpu = \"baseline\"", "console = \"virtio,pty\"", "entry = \"pvh\""] {
        assert!(unchanged.lines().any(|found| found == line), "{line}: {unchanged}");
    }
    assert_eq!(with(&["--rng"]), unchanged.replace("balloon", "rng = true\nballoon"));
}

#[test]
fn a_guest_is_run_with_what_both_say() {
    let text = "memory = '64M'\nkernel.cmdline = 'quiet'\nrng = true\ndisk = 'ephemeral,size=1M'";
    let all = described(text, &["--disk=ephemeral,size=2M", "--append=run=virtio;exit 5"]).with(5).silent();
    let devices = all.lines().filter(|line| line.contains("block") || line.contains("disk")).count();
    assert!(devices >= 2, "{all:#?}");
}

#[test]
fn what_is_wrong_in_a_file_is_said_with_the_line_and_what_is_right() {
    described("\n\nmemori = '64M'", &[])
        .refused(&["vm.toml, line 3: unknown key `memori`: did you mean `memory`?"]);
    described("[[disk]]\npath='x'\nreadonly=true", &[]).refused(&[
        "line 3",
        "unknown key `readonly` in `disk`",
        "there are",
        "`ro`",
    ]);
    described("memory = true", &[])
        .refused(&["line 1", "`memory` is true or false, and has to be a size, as in \"512M\""]);
    described("rng = 'yes'", &[]).refused(&["line 1: `rng` is a text, and has to be true or false"]);
    described("cpus = 0.5", &[]).refused(&["line 1: `cpus` is a number with a point"]);
    described("memory = '64M", &[]).refused(&["vm.toml, line 1: this is not TOML: "]);
    described("memory = '64M'\n\nmemory = '65M'", &[]).refused(&["line 3: this is not TOML: duplicate key"]);
    described(&"#".repeat((1 << 20) + 1), &[]).refused(&["vm.toml is larger than 1 MiB"]);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let scratch = Scratch::new();
    run_in(scratch.path(), &["--config", "none.toml"]).refused(&["cannot read none.toml", "No such file"]);
    run_in(scratch.path(), &["--config", "."]).refused(&["cannot read .: ", "directory"]);
    scratch.file("vm.toml", b"name = '\xff'");
    run_in(scratch.path(), &["--config", "vm.toml"]).refused(&["vm.toml, line 1: this is not text (UTF-8)"]);
}

#[test]
fn what_no_file_can_say_is_not_printed() {
    let kernel = OsStr::from_bytes(b"/k\xffrnel");
    let finished = Running::start(program().args(["run", "--print-config"]).arg(kernel)).finish();
    finished.refused(&["\"/k\\xFFrnel\" is not UTF-8"]);
    let nothing = described("", &["--flat=0x1000"]);
    nothing.refused(&["--flat says how a kernel is loaded"]);
}

#[test]
fn printing_and_leaving_a_guest_behind_exclude_each_other() {
    let both = lodger(["run", "--print-config", "--detach"], "").with(2);
    assert!(both.stderr.contains("cannot be used with"), "{both:#?}");
    // A description is printed where there is no hypervisor as well, and whatever is missing.
    let text = lodger(["run", "/no/kernel", "--print-config"], "").with(0).silent().stdout;
    assert!(text.ends_with("[kernel]\npath = \"/no/kernel\"\n"), "{text}");
}
