//! `numbers.txt` lists what every message, enumeration and service has had on the wire. This compares
//! it with what the `.proto` files say now.
//!
//! A peer of another release reads by number. So a number that was once given keeps its name and
//! type, or is reserved, and is never given to anything else. `UPDATE=1 cargo test -p
//! satrap-proto --test numbers` adds new numbers to the list, so that a review shows them.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

use std::{collections::BTreeMap, env, fs, path::Path};

use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
    field_descriptor_proto::{Label, Type},
};

const COMMAND: &str = "UPDATE=1 cargo test -p satrap-proto --test numbers";

/// The entry of a number that must not be given again.
const RESERVED: &str = "reserved";

/// From a message and number, or service and method, to what it is.
type Listing = BTreeMap<(String, Place), String>;

/// Sorts numbers as numbers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Number(i32),
    Method(String),
}

impl Place {
    fn text(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Method(name) => name.clone(),
        }
    }
}

fn field(field: &FieldDescriptorProto) -> String {
    let kind = match field.r#type() {
        Type::Message | Type::Enum => field.type_name().trim_start_matches('.').to_owned(),
        kind => kind.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    let label = match field.label() {
        Label::Repeated => "repeated ",
        _ if field.proto3_optional() => "optional ",
        _ => "",
    };
    let member = match field.oneof_index {
        Some(_) if !field.proto3_optional() => " of a oneof",
        _ => "",
    };
    format!("{} {label}{kind}{member}", field.name())
}

fn messages(listing: &mut Listing, scope: &str, message: &DescriptorProto) {
    let name = format!("{scope}.{}", message.name());
    let mut add = |number, what| {
        let before = listing.insert((name.clone(), Place::Number(number)), what);
        assert_eq!(before, None, "{name} {number} twice");
    };
    message.field.iter().for_each(|f| add(f.number(), field(f)));
    for range in &message.reserved_range {
        (range.start()..range.end()).for_each(|number| add(number, RESERVED.to_owned()));
    }
    message.nested_type.iter().for_each(|nested| messages(listing, &name, nested));
    message.enum_type.iter().for_each(|nested| enumeration(listing, &name, nested));
}

fn enumeration(listing: &mut Listing, scope: &str, numbers: &EnumDescriptorProto) {
    let name = format!("{scope}.{}", numbers.name());
    for value in &numbers.value {
        let place = (name.clone(), Place::Number(value.number()));
        listing.insert(place, value.name().to_owned());
    }
    // Ranges of enumerations include their end.
    for range in &numbers.reserved_range {
        for number in range.start()..=range.end() {
            listing.insert((name.clone(), Place::Number(number)), RESERVED.to_owned());
        }
    }
}

fn service(listing: &mut Listing, scope: &str, service: &ServiceDescriptorProto) {
    for method in &service.method {
        let stream = |streams| if streams { "stream " } else { "" };
        let what = format!(
            "{}{} -> {}{}",
            stream(method.client_streaming()),
            method.input_type().trim_start_matches('.'),
            stream(method.server_streaming()),
            method.output_type().trim_start_matches('.'),
        );
        let place = Place::Method(method.name().to_owned());
        listing.insert((format!("{scope}.{}", service.name()), place), what);
    }
}

/// The numbers in the `.proto` files.
fn compiled() -> Listing {
    let mut listing = Listing::new();
    for file in FileDescriptorSet::decode(satrap_proto::DESCRIPTORS).unwrap().file {
        let scope = file.package();
        file.message_type.iter().for_each(|message| messages(&mut listing, scope, message));
        file.enum_type.iter().for_each(|numbers| enumeration(&mut listing, scope, numbers));
        file.service.iter().for_each(|of| service(&mut listing, scope, of));
    }
    listing
}

fn write(listing: &Listing) -> String {
    let line = |((of, place), what): (&(String, Place), &String)| {
        format!("{of} {} {what}\n", place.text())
    };
    listing.iter().map(line).collect()
}

fn read(text: &str) -> Listing {
    let line = |line: &str| {
        let mut words = line.splitn(3, ' ').map(str::to_owned);
        let (of, place, what) = (words.next()?, words.next()?, words.next()?);
        let place = place.parse().map_or(Place::Method(place), Place::Number);
        Some(((of, place), what))
    };
    text.lines()
        .map(|l| line(l).unwrap_or_else(|| panic!("not a line of a listing: {l:?}")))
        .collect()
}

/// The changes that no release may make, and the entries that are merely new.
fn compare(listed: &Listing, compiled: &Listing) -> (Vec<String>, Vec<String>) {
    let (mut refused, mut new) = (Vec::new(), Vec::new());
    for (at, was) in listed {
        let (of, place) = (&at.0, at.1.text());
        match compiled.get(at) {
            Some(is) if is == was => {}
            // A number may be reserved at any time.
            Some(is) if is == RESERVED => new.push(format!("{of} {place}: {RESERVED}, was {was}")),
            Some(is) => refused.push(format!("{of} {place}: was `{was}`, is `{is}`")),
            None => refused.push(format!("{of} {place}: was `{was}`, is gone")),
        }
    }
    for (at, is) in compiled.iter().filter(|(at, _)| !listed.contains_key(at)) {
        new.push(format!("{} {}: {is}", at.0, at.1.text()));
    }
    (refused, new)
}

#[test]
fn what_is_on_the_wire_keeps_its_number() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("numbers.txt");
    let (listed, compiled) = (fs::read_to_string(&path).unwrap(), compiled());
    let (refused, new) = compare(&read(&listed), &compiled);
    assert!(
        refused.is_empty(),
        "peers of another release would misread these:\n  {}\nGive what is new a number that \
         proto/numbers.txt does not have, and put `reserved NUMBER;` where something was taken out.",
        refused.join("\n  ")
    );
    if env::var_os("UPDATE").is_some() {
        fs::write(path, write(&compiled)).unwrap();
        return;
    }
    let new = new.join("\n  ");
    assert!(new.is_empty(), "not yet in proto/numbers.txt:\n  {new}\nAdd them with: {COMMAND}");
    assert!(
        listed == write(&compiled),
        "numbers.txt is out of order; put it right with: {COMMAND}"
    );
}

#[test]
fn a_number_is_never_given_again() {
    let before = read("p.M 1 a uint64\np.M 2 b bytes\np.M 10 reserved\np.S Do p.M -> p.M\n");
    assert_eq!(compare(&before, &before), (vec![], vec![]));
    let of = |text: &str| {
        let (refused, new) = compare(&before, &read(text));
        (refused.join("; "), new.join("; "))
    };
    let (all, none) = ("p.M 10 reserved\np.S Do p.M -> p.M\n", String::new());
    for (now, refused, new) in [
        ("p.M 1 a uint64\np.M 2 b bytes\np.M 3 d bool", &none[..], "p.M 3: d bool"),
        ("p.M 1 a uint64\np.M 2 reserved", "", "p.M 2: reserved, was b bytes"),
        ("p.M 1 a uint64", "p.M 2: was `b bytes`, is gone", ""),
        ("p.M 1 a uint32\np.M 2 b bytes", "p.M 1: was `a uint64`, is `a uint32`", ""),
        ("p.M 1 a uint64\np.M 2 x bytes", "p.M 2: was `b bytes`, is `x bytes`", ""),
        ("p.M 1 a uint64\np.M 3 b bytes", "p.M 2: was `b bytes`, is gone", "p.M 3: b bytes"),
    ] {
        assert_eq!(of(&format!("{now}\n{all}")), (refused.to_owned(), new.to_owned()), "{now}");
    }
    let streams = "p.M 1 a uint64\np.M 2 b bytes\np.M 10 reserved\np.S Do stream p.M -> p.M\n";
    assert_eq!(of(streams).0, "p.S Do: was `p.M -> p.M`, is `stream p.M -> p.M`");
}
