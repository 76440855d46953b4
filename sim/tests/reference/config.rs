//! `docs/config.md`: every key of every file that a person writes or reads.
//!
//! A file begins at a struct whose documentation starts with its name, as in "`edge.toml`: ...".
//! Keys are the fields, tables the structs that they name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
};

use syn::{GenericArgument, ItemStruct, PathArguments, Type};

use crate::source::{Sources, Value, attributes, docs, fields};

const HEAD: &str = "# Settings

Every key of every file that a person writes or reads. Generated from the sources by \
`UPDATE=1 cargo test -p satrap-sim --test reference`; a test fails when this page is out of date.

An unknown key is refused. Relative paths are relative to the directory of the file that names them. \
A key with a default may be left out, and so may a key whose default is \"none\".
";

pub fn document(sources: &Sources) -> String {
    let mut text = HEAD.to_owned();
    let mut roots = BTreeMap::new();
    for (path, item) in sources.structs() {
        let docs = docs(&item.attrs);
        let Some(named) = docs.first().and_then(|first| first.strip_prefix('`')) else { continue };
        let Some((file, meaning)) = named.split_once("`: ") else { continue };
        if derives_deserialize(item) {
            roots.insert(file.to_owned(), (path, item, meaning.to_owned()));
        }
    }
    assert!(roots.len() >= 6, "only {:?} were found", roots.keys());
    let mut described = BTreeSet::new();
    for (file, (path, item, meaning)) in &roots {
        write!(text, "\n## {file}\n\n{}\n\n", capital(meaning)).unwrap();
        text.push_str("| key | type | unit | default | meaning |\n|---|---|---|---|---|\n");
        table(sources, path, item, "", &mut text, &mut described);
    }
    let forgotten: Vec<_> = sources
        .structs()
        .filter(|(_, item)| attributes(&item.attrs, "serde").join(",").contains("deny_unknown"))
        .filter(|(path, item)| !described.contains(&(path.to_path_buf(), item.ident.to_string())))
        .map(|(path, item)| format!("{}: {}", path.display(), item.ident))
        .collect();
    assert!(forgotten.is_empty(), "structs of files that no file's struct reaches: {forgotten:?}");
    text
}

type Described = BTreeSet<(std::path::PathBuf, String)>;

/// The rows of a struct, and of the tables in it, under the key that leads to it.
fn table(
    sources: &Sources,
    path: &Path,
    item: &ItemStruct,
    under: &str,
    text: &mut String,
    described: &mut Described,
) {
    described.insert((path.to_owned(), item.ident.to_string()));
    for field in fields(item) {
        let name = field.ident.as_ref().unwrap().to_string();
        let key = if under.is_empty() { name.clone() } else { format!("{under}.{name}") };
        let place = || format!("{}: {}.{name}", path.display(), item.ident);
        let mut paragraphs = docs(&field.attrs);
        let given = paragraphs.iter().position(|paragraph| paragraph.starts_with("Default: "));
        let given = given.map(|at| paragraphs.remove(at));
        assert!(!paragraphs.is_empty(), "{}: a key needs a meaning", place());
        let kind = Kind::of(sources, path, &field.ty);
        let unit = unit(&name);
        let attribute = attributes(&item.attrs, "serde").join(",");
        let serde = (attribute, attributes(&field.attrs, "serde").join(","));
        let default = match given {
            Some(given) => self::given(sources, path, &given["Default: ".len()..], unit),
            None => implied(sources, path, (item, &name), &serde, &kind, unit),
        };
        assert!(default.is_some() || kind.optional || !serde.1.contains("default"), "{}", place());
        let default = default
            .unwrap_or_else(|| if kind.optional { "none".into() } else { "required".into() });
        let meaning = paragraphs.join(" ").replace('|', "\\|");
        writeln!(text, "| `{key}` | {} | {unit} | {default} | {meaning} |", kind.name).unwrap();
        if let Some((path, inner)) = kind.inner {
            table(sources, path, inner, &key, text, described);
        }
    }
}

/// A default that the documentation states: words, or the name of a value in backticks.
fn given(sources: &Sources, path: &Path, stated: &str, unit: &str) -> Option<String> {
    let stated = stated.trim_end_matches('.');
    let name = stated.strip_prefix('`').and_then(|rest| rest.strip_suffix('`'));
    Some(name.map_or_else(|| stated.to_owned(), |name| show(sources.value(path, name), unit)))
}

/// A default that serde fills in.
fn implied(
    sources: &Sources,
    path: &Path,
    (item, name): (&ItemStruct, &str),
    (of_struct, of_field): &(String, String),
    kind: &Kind<'_>,
    unit: &str,
) -> Option<String> {
    if let Some((_, function)) = of_field.split_once("default = \"") {
        let function = function.split('"').next().unwrap();
        return Some(show(sources.returned(path, function), unit));
    }
    if !of_struct.contains("default") && !of_field.contains("default") {
        return None;
    }
    let made = sources.default_of(path, &item.ident.to_string(), name);
    made.map(|value| show(value, unit)).or_else(|| kind.empty.map(str::to_owned))
}

fn show(value: Value, unit: &str) -> String {
    match value {
        Value::Flag(flag) => flag.to_string(),
        Value::Number(number) if unit == "MiB" => (number >> 20).to_string(),
        Value::Number(number) => number.to_string(),
        Value::Milliseconds(ms) if unit == "s" => (ms / 1_000).to_string(),
        Value::Milliseconds(ms) if unit == "ms" => ms.to_string(),
        Value::Milliseconds(_) => panic!("a duration for a key whose unit is {unit:?}"),
    }
}

/// Names of keys end in their unit, or in a bound after it.
fn unit(name: &str) -> &'static str {
    let name = name.trim_end_matches("_max").trim_end_matches("_min");
    let last = name.rsplit('_').next().unwrap_or_default();
    match last {
        "ms" => "ms",
        "s" => "s",
        "days" => "days",
        "mib" => "MiB",
        "bytes" => "bytes",
        _ if name.contains("_percent_") => "%",
        _ => "",
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

fn derives_deserialize(item: &ItemStruct) -> bool {
    attributes(&item.attrs, "derive").iter().any(|derived| derived.contains("Deserialize"))
}

/// The type of a key's value.
struct Kind<'a> {
    name: String,
    /// `Option`
    optional: bool,
    /// The value that serde makes of nothing.
    empty: Option<&'static str>,
    /// The struct whose fields are the keys below.
    inner: Option<(&'a Path, &'a ItemStruct)>,
}

impl<'a> Kind<'a> {
    fn of(sources: &'a Sources, from: &Path, of: &Type) -> Self {
        let Type::Path(of) = of else { panic!("{}: a type without a name", from.display()) };
        let last = of.path.segments.last().unwrap();
        let inner = || match &last.arguments {
            PathArguments::AngleBracketed(list) => match list.args.last() {
                Some(GenericArgument::Type(inner)) => Self::of(sources, from, inner),
                _ => panic!("{}: {}", from.display(), last.ident),
            },
            _ => panic!("{}: {}", from.display(), last.ident),
        };
        let plain =
            |name: &str, empty| Self { name: name.into(), optional: false, empty, inner: None };
        match last.ident.to_string().as_str() {
            "Option" => Self { optional: true, empty: None, ..inner() },
            "Vec" => {
                let inner = inner();
                let name = format!("list of {}", inner.name);
                Self { name, optional: false, empty: Some("empty"), ..inner }
            }
            "BTreeMap" => Self { empty: Some("empty"), ..plain("table of text", None) },
            "PathBuf" => plain("path", None),
            "String" => plain("text", None),
            "SocketAddr" => plain("IP:PORT", None),
            "bool" => plain("true or false", Some("false")),
            "u32" | "u64" | "usize" => plain("number", None),
            name => {
                let structs = sources.structs().filter(|(_, item)| item.ident == name);
                let structs: Vec<_> = structs.map(|(path, item)| (path, (path, item))).collect();
                if structs.is_empty() {
                    return plain(&variants(sources, from, name), None);
                }
                let inner = Some(Sources::nearest(from, structs.into_iter(), name));
                Self { name: "table".into(), optional: false, empty: Some("see its keys"), inner }
            }
        }
    }
}

/// The words that an enum is written as.
fn variants(sources: &Sources, from: &Path, name: &str) -> String {
    let enums = sources.enums().filter(|(_, item)| item.ident == name);
    let item = Sources::nearest(from, enums, name);
    let words = item.variants.iter().map(|variant| {
        let mut word = String::new();
        for char in variant.ident.to_string().chars() {
            if char.is_uppercase() && !word.is_empty() {
                word.push('-');
            }
            word.extend(char.to_lowercase());
        }
        format!("`{word}`")
    });
    words.collect::<Vec<_>>().join(" or ")
}
