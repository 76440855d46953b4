//! Which crate may depend on which, read from the manifests.
//!
//! [`FORBIDDEN`] is the whole policy. Each row holds over our crates that a crate reaches through its
//! dependencies, those of build scripts and of single targets included, and over the packages that
//! these name in their manifests; `deny.toml` judges what packages of others bring along. An optional
//! dependency counts where a manifest on the way asks for its feature. Tests may link what they like.

use std::collections::{BTreeMap, BTreeSet};

use super::{files, nothing};

/// A set of crates, by the folder of their manifest or by name.
#[derive(Clone, Copy)]
enum Group {
    /// Our crates in these folders.
    Folders(&'static [&'static str]),
    /// Crates with these names, or with one of them and a hyphen in front of the rest.
    Names(&'static [&'static str]),
}

/// The crates that decide and do not act.
pub const PURE_CRATES: [&str; 9] = [
    "crates/certify",
    "crates/history",
    "crates/lies",
    "crates/merkle",
    "crates/pressure",
    "edge-agent/core",
    "global-bft/core",
    "regional/region/core",
    "regional/ring/core",
];
const PURE: Group = Group::Folders(&PURE_CRATES);
const RING: Group = Group::Folders(&["regional/ring"]);
const PRODUCT: Group = Group::Folders(&["cli"]);
const LAB: Group =
    Group::Folders(&["bench", "crates/effort", "crates/history", "histories", "sim"]);

/// A crate of the first group never reaches one of the second, and why.
const FORBIDDEN: [(Group, Group, &str); 7] = [
    (
        PURE,
        Group::Names(&[
            "getrandom",
            "arc-malachitebft",
            "openraft",
            "prost",
            "rand",
            "rcgen",
            "redb",
            "rustls",
            "tokio",
            "tonic",
        ]),
        "a pure crate decides; it has no IO, clock or randomness",
    ),
    (
        RING,
        Group::Folders(&["regional/region", "crates/sync", "global-bft", "edge-agent"]),
        "the ring is a coordination store that knows nothing of regions or edges",
    ),
    (PRODUCT, LAB, "what operators run links no test programs"),
    (LAB, PRODUCT, "test programs drive the binary, and share the crates below it"),
    (
        Group::Folders(&["crates"]),
        Group::Folders(&["cli", "bench", "histories"]),
        "a library does not know the programs that use it",
    ),
    // `regional/ring/raft` authenticates its peers, so it reaches both through their identities.
    (
        Group::Folders(&["regional/ring/core", "regional/ring/storage", "regional/ring/api"]),
        Group::Folders(&["crates/certify", "crates/identity"]),
        "keys, leases and the log are neither certified nor bound to names",
    ),
    (
        Group::Folders(&["crates/client"]),
        Group::Names(&["rcgen", "redb"]),
        "a program that uses a ring neither keeps a database nor issues certificates",
    ),
];

impl Group {
    fn holds(self, name: &str, workspace: &Workspace) -> bool {
        match self {
            Self::Folders(folders) => workspace.folder(name).is_some_and(|folder| {
                let below = |root: &&str| folder.starts_with(&format!("{root}/"));
                folders.iter().any(|root| folder == *root || below(root))
            }),
            Self::Names(names) => names.iter().any(|n| {
                name.strip_prefix(n).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
            }),
        }
    }
}

/// Our crates: folder and direct dependencies of each, by package name. A feature is a node too,
/// `crate/feature`, without a folder.
struct Workspace(BTreeMap<String, (String, BTreeSet<String>)>);

/// The package that a manifest means by the name of a dependency.
fn package(name: &str, how: &toml::Value) -> String {
    how.get("package").and_then(|p| p.as_str()).unwrap_or(name).to_owned()
}

fn texts(value: Option<&toml::Value>) -> impl Iterator<Item = &str> {
    value.and_then(|v| v.as_array()).into_iter().flatten().filter_map(|v| v.as_str())
}

/// All dependencies of a manifest but those of tests.
fn dependencies(manifest: &toml::Table) -> impl Iterator<Item = (&String, &toml::Value)> {
    let targets = manifest.get("target").and_then(|t| t.as_table()).into_iter().flatten();
    let tables = targets.filter_map(|(_, target)| target.as_table()).chain([manifest]);
    tables
        .flat_map(|table| [table.get("dependencies"), table.get("build-dependencies")])
        .flatten()
        .filter_map(|d| d.as_table())
        .flatten()
}

/// The nodes that a crate or one of its features leads to at once.
type Reached = BTreeSet<String>;

/// The packages that a crate always links, and the features that it asks of them.
fn linked(manifest: &toml::Table, shared: &toml::Table) -> Reached {
    let mut to = Reached::new();
    for (name, how) in dependencies(manifest) {
        let asked = package(name, how);
        let features = texts(how.get("features"))
            .chain(texts(shared.get(name).and_then(|how| how.get("features"))))
            .chain(["default"]);
        to.extend(features.map(|feature| format!("{asked}/{feature}")));
        if how.get("optional").and_then(toml::Value::as_bool) != Some(true) {
            to.insert(asked);
        }
    }
    to
}

impl Workspace {
    fn read() -> Self {
        let mut crates = BTreeMap::new();
        let manifests = files(&["toml"]);
        let all: toml::Table = manifests["Cargo.toml"].parse().expect("cargo reads it");
        let shared =
            all["workspace"]["dependencies"].as_table().expect("versions are in one place");
        for (path, text) in &manifests {
            let Some(folder) = path.strip_suffix("/Cargo.toml") else { continue };
            let manifest: toml::Table = text.parse().expect("cargo reads it");
            // Not of the workspace: the fuzz targets of a crate.
            let Some(name) = manifest["package"]["name"].as_str() else { continue };
            for (feature, _) in
                manifest.get("features").and_then(|f| f.as_table()).into_iter().flatten()
            {
                let to = texts(Some(&manifest["features"][feature])).map(|to| {
                    match (to.strip_prefix("dep:"), to.contains('/')) {
                        (Some(package), _) => package.to_owned(),
                        (None, true) => to.replace('?', ""),
                        (None, false) => format!("{name}/{to}"),
                    }
                });
                crates.insert(format!("{name}/{feature}"), (String::new(), to.collect()));
            }
            crates.insert(name.to_owned(), (folder.to_owned(), linked(&manifest, shared)));
        }
        Self(crates)
    }

    fn folder(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|(folder, _)| folder.as_str()).filter(|folder| !folder.is_empty())
    }

    /// All that `name` links through our crates, with one way to each.
    fn reached_from(&self, name: &str) -> BTreeMap<String, String> {
        let mut ways = BTreeMap::new();
        let mut open = vec![(name.to_owned(), name.to_owned())];
        while let Some((name, way)) = open.pop() {
            for next in self.0.get(&name).into_iter().flat_map(|(_, dependencies)| dependencies) {
                if !ways.contains_key(next) {
                    let way = format!("{way} -> {next}");
                    ways.insert(next.clone(), way.clone());
                    open.push((next.clone(), way));
                }
            }
        }
        ways
    }

    fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        for name in self.0.keys() {
            for (to, way) in self.reached_from(name) {
                let breaks = FORBIDDEN.iter().filter(|(from, forbidden, _)| {
                    from.holds(name, self) && forbidden.holds(&to, self)
                });
                found.extend(breaks.map(|(_, _, why)| format!("{way}: {why}")));
            }
        }
        found
    }
}

#[test]
fn no_crate_reaches_what_it_must_not_know() {
    let workspace = Workspace::read();
    let lock: toml::Table = files(&["lock"])["Cargo.lock"].parse().expect("cargo reads it");
    let packages = lock["package"].as_array().expect("packages are a list");
    let known: Vec<_> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    for (from, forbidden, why) in FORBIDDEN {
        let names: Vec<_> =
            workspace.0.keys().filter(|name| from.holds(name, &workspace)).collect();
        let Group::Folders(folders) = from else { panic!("{why}: ours are known by folder") };
        assert!(names.len() >= folders.len(), "{why}: of {folders:?} there are only {names:?}");
        // A word that forbids nothing is a misspelling, or the crate is gone.
        let is_held = |group: Group| known.iter().any(|name| group.holds(name, &workspace));
        match forbidden {
            Group::Folders(all) => all.iter().for_each(|one| {
                assert!(is_held(Group::Folders(std::slice::from_ref(one))), "{why}: no {one}");
            }),
            Group::Names(all) => all.iter().for_each(|one| {
                assert!(is_held(Group::Names(std::slice::from_ref(one))), "{why}: no {one}");
            }),
        }
    }
    nothing("forbidden dependencies", &workspace.violations());
}

/// The check sees an arrow through another crate, and each row of the table is of use.
#[test]
fn a_forbidden_arrow_is_found() {
    for (from, to, row) in [
        ("satrap-certify", "tokio", 0),
        ("satrap-merkle", "arc-malachitebft-signing", 0),
        ("satrap-ring-storage", "satrap-region-server", 1),
        // The binary links it.
        ("satrap-realm", "satrap-sim", 2),
        ("satrap-histories", "satrap", 3),
        ("satrap-realm", "satrap", 4),
        ("satrap-ring-storage", "satrap-certify", 5),
        // A feature of a crate that the client links.
        ("satrap-client", "satrap-runtime/database", 6),
    ] {
        let mut workspace = Workspace::read();
        workspace.0.get_mut(from).expect("a crate of ours").1.insert(to.to_owned());
        let (found, why) = (workspace.violations(), FORBIDDEN[row].2);
        assert!(found.iter().any(|line| line.ends_with(why)), "{from} -> {to}: {found:?}");
    }
}

#[test]
fn every_table_of_dependencies_is_read() {
    let manifest = "
        [build-dependencies]
        a.workspace = true
        [target.'cfg(unix)'.dependencies]
        b = { package = 'c', optional = true, features = ['f'] }
        [dev-dependencies]
        d = '1'
    ";
    let shared = "a = { features = ['g'] }";
    let found = linked(&manifest.parse().unwrap(), &shared.parse().unwrap());
    assert_eq!(Vec::from_iter(found), ["a", "a/default", "a/g", "c/default", "c/f"]);
}
