//! Goal: the commands of the README's measurements are understood.
//! Method: each is given to the built program with `--help` behind it, which is reached only when all before it is right.

use std::process::Command;

const README: &str = include_str!("../../README.md");

#[test]
fn every_command_of_the_readme_is_understood() {
    let commands = README.lines().filter_map(|line| line.strip_prefix("target/release/ringmesh-bench "));
    let mut seen = 0;
    for command in commands {
        let words = command.split_whitespace().take_while(|word| *word != "&");
        // The process that the shell would name.
        let words = words.map(|word| if word.starts_with('$') { "1" } else { word });
        let output = Command::new(env!("CARGO_BIN_EXE_ringmesh-bench")).args(words).arg("--help").output();
        let output = output.expect("the program can be run");
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        seen += 1;
    }
    assert!(seen > 10, "{seen} commands: are they still found?");
}
