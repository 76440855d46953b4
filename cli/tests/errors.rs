//! A person whose command line is wrong sees the fault, what was expected, and what to do.

mod common;

use std::fs;

use common::satrap;

/// Command line, exit code, the whole text on standard error.
const CASES: &[(&[&str], i32, &str)] = &[
    (
        &["status"],
        64,
        "satrap: .satrap/realm.json: No such file or directory (os error 2); start a realm with \
         `satrap dev`, name one with --realm DIR, or give --endpoint, --genesis, --cert, --key and \
         --trust\n",
    ),
    (
        &["verify", "--genesis", "none", "--certificate", "none"],
        64,
        "satrap: genesis none: No such file or directory (os error 2); check the path\n",
    ),
    (
        &["publish", "config/x", "absent"],
        64,
        "satrap: content absent: No such file or directory (os error 2); check the path\n",
    ),
    (
        &["publish", "config/x", "words"],
        65,
        "satrap: words: it holds no PEM certificate; a single file must be PEM with certificates and \
         nothing else; other content is published as a directory of files\n",
    ),
    (
        &["publish", "config/x", "key.pem"],
        65,
        "satrap: key.pem: it holds a private key (PEM block `PRIVATE KEY`), and what is published is copied \
         to every edge; take the key out\n",
    ),
    (
        &["dev", "--trust-bundle", "absent"],
        64,
        "satrap: content absent: No such file or directory (os error 2); check the path\n",
    ),
    (
        &["submit", "words"],
        65,
        "satrap: words is not a change file (input ends in the middle of a value); \
         `satrap publish`, `retire` and `govern` save one with --out\n",
    ),
    (
        &["init", "words"],
        64,
        "satrap: words: not a realm description: TOML parse error at line 1, column 5\n  |\n1 | not \
         toml\n  |     ^\nkey with no value, expected `=`\nsee `satrap init --example`\n",
    ),
    (&["init", "binary"], 64, "satrap: binary: invalid utf-8 sequence of 1 bytes from index 0\n"),
    (
        &["govern", "set-validators", "words"],
        64,
        "satrap: words is not a list of validators: TOML parse error at line 1, column 5\n  |\n1 | not \
         toml\n  |     ^\nkey with no value, expected `=`\n; `satrap govern show --validators` prints a \
         list\n",
    ),
    (
        &["snapshot", "save", "words"],
        64,
        "satrap: words exists; a snapshot is never overwritten: choose another name, or remove it \
         first\n",
    ),
    (
        &["edge", "run", "--config", "absent"],
        64,
        "satrap: cannot read absent: No such file or directory (os error 2)\n",
    ),
    (
        &["--json", "publish", "config/x", "absent"],
        64,
        "{\"error\":{\"kind\":\"usage\",\"message\":\"content absent: No such file or directory (os \
         error 2); check the path\",\"rule\":null}}\n",
    ),
    (
        &["get", "../etc"],
        64,
        "error: invalid value '../etc' for '<BUNDLE>': `../etc` is not a valid bundle name: expected \
         labels of a-z 0-9 - _ . joined by `/`, at most 128 bytes in all\n\nFor more information, \
         try '--help'.\n",
    ),
    (
        &["govern", "revoke-operator", "abc"],
        64,
        "error: invalid value 'abc' for '<KEY>': expected 64 hex digits of an Ed25519 public \
         key\n\nFor more information, try '--help'.\n",
    ),
    (
        &["publish", "config/x", "dangling"],
        64,
        "satrap: content dangling is a link to nowhere, which does not exist; mend or remove the \
         link\n",
    ),
    (
        &["blocks", "--from", "5", "--to", "3", "--out", "b"],
        64,
        "satrap: --from 5 is above --to 3; heights go up, and --to 0 is the newest\n",
    ),
    (
        &["member", "add", "d", "--peer-url", "http://10.0.0.4:7"],
        64,
        "error: invalid value 'http://10.0.0.4:7' for '--peer-url <URL>': \"http://10.0.0.4:7\" is not \
         an address; expected https://HOST:PORT\n\nFor more information, try '--help'.\n",
    ),
    (
        &["quota", "set", "a", "--json"],
        64,
        "{\"error\":{\"kind\":\"usage\",\"message\":\"the following required arguments were not \
         provided:\\n  <--bytes <SIZE>|--keys <NUMBER>>\\n\\nUsage: satrap quota set --json \
         <PREFIX|--total> <--bytes <SIZE>|--keys <NUMBER>>\\n\\nFor more information, try \
         '--help'.\",\"rule\":null}}\n",
    ),
    (
        &["publsh"],
        64,
        "error: unrecognized subcommand 'publsh'\n\n  tip: a similar subcommand exists: \
         'publish'\n\nUsage: satrap [OPTIONS] <COMMAND>\n\nFor more information, try '--help'.\n",
    ),
];

#[test]
fn mistakes_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("words"), "not toml\n").unwrap();
    fs::write(dir.path().join("binary"), [0xff, 0xfe]).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("dangling")).unwrap();
    let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    fs::write(dir.path().join("key.pem"), key).unwrap();
    for (args, code, expected) in CASES {
        let ran = satrap(dir.path(), args);
        assert_eq!(ran.err, *expected, "satrap {}", args.join(" "));
        assert_eq!((ran.code, ran.out.as_str()), (*code, ""), "satrap {}", args.join(" "));
    }
}

/// Usage errors of `dev` are the user's, and leave what they are about alone.
#[test]
fn a_state_directory_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    fs::create_dir(dir.path().join("taken")).unwrap();
    fs::write(dir.path().join("taken").join("mine"), "").unwrap();
    let dev = |state: &str| satrap(dir.path(), &["dev", "--once", "--state-dir", state]);
    dev("taken").fails(64, "taken is not empty and holds no realm of `satrap dev`; give another");
    assert_eq!(fs::read_dir(dir.path().join("taken")).unwrap().count(), 1);
    dev("file").fails(64, "file");
    dev("file/below").fails(64, "/file: ");
    fs::write(dir.path().join("taken").join("realm.toml"), "broken").unwrap();
    dev("taken").fails(65, "realm.toml: ");
}

#[test]
fn the_command_line_is_consistent() {
    use clap::CommandFactory as _;
    satrap_cli::verbs::Cli::command().debug_assert();
}

#[test]
fn help_and_version_are_no_errors() {
    let dir = tempfile::tempdir().unwrap();
    assert!(satrap(dir.path(), &["--version"]).succeeds().starts_with("satrap 0."));
    let help = satrap(dir.path(), &["--help"]).succeeds();
    assert!(help.starts_with("Operates a Satrap realm: publishes certified config"), "{help}");
    for verb in ["init", "publish", "get", "status", "verify", "dev", "validator", "completions"] {
        assert!(help.contains(&format!("\n  {verb}")), "{help}");
    }
}

#[test]
fn completions_name_every_verb() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = satrap(dir.path(), &["completions", shell]).succeeds();
        assert!(script.contains("publish") && script.contains("set-validators"), "{shell}");
    }
}

#[test]
fn keys_are_made_once_and_must_stay_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let public = satrap(dir.path(), &["--json", "govern", "new-key", "k"]).json();
    assert_eq!(public["public_key"].as_str().unwrap().len(), 64);
    satrap(dir.path(), &["govern", "new-key", "k"])
        .fails(64, "k exists; a key is never overwritten");
    let path = dir.path().join("k");
    assert!(satrap_operator::keys::read_signer(&path).is_ok());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let error = satrap_operator::keys::read_signer(&path).err().unwrap();
    assert!(error.message.contains("run `chmod 600"), "{error}");
}
