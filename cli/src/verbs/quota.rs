//! `satrap quota`: limits the bytes and keys of a region's keyspace, in all or below a prefix.

use std::fmt;

use satrap_operator::{Error, client::etcd::answer};
use satrap_proto::v1::{
    ListQuotasRequest, Quota, RemoveQuotaRequest, SetQuotaRequest, store_client::StoreClient,
};
use serde::Serialize;

use crate::{
    output::{Output, table},
    verbs::{block_on, etcd},
};

/// The subcommand.
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    /// Show every limit and what is in use
    List(List),
    /// Limit the keys with a prefix together; replaces the limits they had
    Set(Set),
    /// Remove the limits of a prefix, or restore the default of the whole keyspace
    Remove(Remove),
}

/// Arguments of `list`.
#[derive(clap::Args, Debug)]
pub struct List {
    #[command(flatten)]
    region: etcd::Args,
}

/// Which keys.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
pub struct Keys {
    /// Those that begin with this
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    prefix: Option<String>,
    /// All of them, old versions included
    #[arg(long)]
    total: bool,
}

/// Arguments of `set`.
#[derive(clap::Args, Debug)]
pub struct Set {
    #[command(flatten)]
    which: Keys,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    region: etcd::Args,
}

/// How much they may hold: bytes, keys or both.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = true)]
pub struct Limits {
    /// Bytes of keys and values, such as 64MiB
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    bytes: Option<u64>,
    /// How many keys
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    #[arg(conflicts_with = "total")]
    keys: Option<u64>,
}

/// Arguments of `remove`.
#[derive(clap::Args, Debug)]
pub struct Remove {
    #[command(flatten)]
    which: Keys,
    #[command(flatten)]
    region: etcd::Args,
}

const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];

fn bytes(text: &str) -> Result<u64, String> {
    let unit = UNITS.iter().find_map(|(name, bits)| Some((text.strip_suffix(name)?, *bits)));
    let (number, bits) = unit.unwrap_or((text, 0));
    let number = number.trim_end().parse::<u64>().ok();
    let bytes = number.and_then(|number| number.checked_mul(1 << bits));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| {
        "expected a number of bytes above zero, or of KiB, MiB or GiB, such as 64MiB".to_owned()
    })
}

impl Keys {
    /// The empty prefix means the whole keyspace.
    fn prefix(&self) -> Vec<u8> {
        self.prefix.clone().unwrap_or_default().into_bytes()
    }
}

/// Runs the command.
///
/// # Errors
///
/// If no member answers, or the ring refuses: once authentication is on, the user must be an
/// administrator of the keyspace.
pub fn run(verb: &Verb, output: &Output) -> Result<(), Error> {
    let region = match verb {
        Verb::List(List { region })
        | Verb::Set(Set { region, .. })
        | Verb::Remove(Remove { region, .. }) => region,
    };
    block_on(async {
        let mut store = StoreClient::new(region.client()?.any().await?);
        let quotas = match verb {
            Verb::List(_) => {
                let listed = store.list_quotas(ListQuotasRequest::default()).await;
                listed.map_err(|status| answer(&status))?.into_inner().quotas
            }
            Verb::Set(Set { which, limits: Limits { bytes, keys }, .. }) => {
                let (bytes_max, keys_max) = (bytes.unwrap_or(0), keys.unwrap_or(0));
                let set = SetQuotaRequest { prefix: which.prefix().into(), bytes_max, keys_max };
                let set = store.set_quota(set).await.map_err(|status| answer(&status))?;
                set.into_inner().quota.into_iter().collect()
            }
            Verb::Remove(Remove { which, .. }) => {
                let remove = RemoveQuotaRequest { prefix: which.prefix().into() };
                store.remove_quota(remove).await.map_err(|status| answer(&status))?;
                let listed = store.list_quotas(ListQuotasRequest::default()).await;
                listed.map_err(|status| answer(&status))?.into_inner().quotas
            }
        };
        output.show(&View { quotas: quotas.into_iter().map(Row::from).collect() })
    })
}

#[derive(Serialize)]
struct View {
    quotas: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    /// Nothing for the whole keyspace.
    prefix: Option<String>,
    bytes: u64,
    bytes_max: Option<u64>,
    keys: u64,
    keys_max: Option<u64>,
}

impl From<Quota> for Row {
    fn from(quota: Quota) -> Self {
        let prefix = String::from_utf8_lossy(&quota.prefix).into_owned();
        Self {
            prefix: (!prefix.is_empty()).then_some(prefix),
            bytes: quota.bytes,
            bytes_max: (quota.bytes_max > 0).then_some(quota.bytes_max),
            keys: quota.keys,
            keys_max: (quota.keys_max > 0).then_some(quota.keys_max),
        }
    }
}

/// A size in the largest unit that is not above it.
fn size(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, bits)| bytes >> bits > 0);
    let Some((name, bits)) = unit else { return format!("{bytes} B") };
    let tenths = ((bytes >> (bits - 10)) * 10) >> 10;
    match tenths % 10 {
        0 => format!("{} {name}", tenths / 10),
        tenth => format!("{}.{tenth} {name}", tenths / 10),
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading = ["PREFIX", "HOLDS", "OF AT MOST", "KEYS", "OF AT MOST"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        rows.extend(self.quotas.iter().map(|Row { prefix, bytes, bytes_max, keys, keys_max }| {
            vec![
                prefix.clone().unwrap_or_else(|| "(all keys, with history)".to_owned()),
                size(*bytes),
                bytes_max.map_or_else(|| "-".to_owned(), size),
                keys.to_string(),
                keys_max.map_or_else(|| "-".to_owned(), |keys| keys.to_string()),
            ]
        }));
        f.write_str(&table(&rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_shown() {
        let sizes = [(1, "1 B"), (1 << 10, "1 KiB"), (3 << 19, "1.5 MiB"), (2 << 30, "2 GiB")];
        for (number, text) in sizes {
            assert_eq!(size(number), text);
        }
        assert_eq!(size(u64::MAX), "17179869183.9 GiB");
        let read = ["1", "64MiB", "64 MiB", "2GiB", "7KiB"].map(bytes);
        assert_eq!(read, [Ok(1), Ok(64 << 20), Ok(64 << 20), Ok(2 << 30), Ok(7 << 10)]);
        for wrong in ["", "0", "0KiB", "-1", "1.5MiB", "64MB", "MiB", "99999999999GiB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
