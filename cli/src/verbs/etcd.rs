//! `satrap etcd`: points an etcd client at a region.
//!
//! # Deliberately absent
//!
//! Commands for keys: etcdctl and every other etcd client works.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use satrap_certify::Genesis;
use satrap_operator::{
    Error,
    client::{etcd::EtcdClient, read_genesis},
};
use satrap_realm::{Description, description::Client};
use serde::Serialize;

use crate::output::Output;

/// The subcommand.
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    /// Print the environment of etcdctl for a region: `eval "$(satrap etcd env)"`
    Env(Args),
}

/// Arguments of `env`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The realm's directory
    #[arg(long, value_name = "DIR", default_value = ".satrap")]
    realm: PathBuf,
    /// The region; the first one if not given
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
}

impl Args {
    /// A client of the region's ring.
    ///
    /// # Errors
    ///
    /// As [`run`], or if its credentials cannot be used.
    pub fn client(&self) -> Result<EtcdClient, Error> {
        let Environment { endpoints, ca, cert, key, .. } =
            environment(&self.realm, self.region.as_deref())?;
        EtcdClient::open(&Client { ca, cert, key }, endpoints)
    }

    /// The root of trust of the realm.
    ///
    /// # Errors
    ///
    /// If there is no such realm, or its genesis cannot be read.
    pub fn genesis(&self) -> Result<Genesis, Error> {
        read_genesis(&described(&self.realm)?.genesis)
    }
}

/// The addresses and files that an etcd client needs.
#[derive(Serialize)]
struct Environment {
    region: String,
    endpoints: Vec<String>,
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

/// Prints.
///
/// # Errors
///
/// If there is no such realm or region, or it serves no etcd clients.
pub fn run(verb: &Verb, output: &Output) -> Result<(), Error> {
    let Verb::Env(args) = verb;
    output.show(&environment(&args.realm, args.region.as_deref())?)
}

fn described(realm: &Path) -> Result<Description, Error> {
    let absolute = std::path::absolute(realm).map_err(|e| Error::usage(e.to_string()))?;
    Description::load(&absolute).map_err(|error| {
        Error::usage(format!(
            "no realm in {}: {error}; name its directory with --realm, or make one with `satrap dev`",
            realm.display()
        ))
    })
}

fn environment(realm: &Path, region: Option<&str>) -> Result<Environment, Error> {
    let description = described(realm)?;
    let wanted = |name: &str| region.is_none_or(|wanted| wanted == name);
    let names: Vec<_> = description.regions.iter().map(|r| r.name.clone()).collect();
    let found = description.regions.into_iter().find(|r| wanted(&r.name)).ok_or_else(|| {
        Error::usage(match region {
            Some(region) => {
                format!("the realm has no region `{region}`; its regions are {}", names.join(", "))
            }
            None => "the realm has no region, so nothing serves etcd clients".to_owned(),
        })
    })?;
    let Some(Client { ca, cert, key }) = found.etcd else {
        return Err(Error::usage(format!(
            "region `{}` serves no etcd clients: its members have no `etcd_url`",
            found.name
        )));
    };
    let endpoints = found.members.into_iter().filter_map(|member| member.etcd_url).collect();
    Ok(Environment { region: found.name, endpoints, ca, cert, key })
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoints, ca, cert, key, .. } = self;
        let mut line = |name: &str, value: String| {
            // Inside single quotes, the shell changes nothing but the quote itself.
            writeln!(f, "export ETCDCTL_{name}='{}'", value.replace('\'', r"'\''"))
        };
        line("ENDPOINTS", endpoints.join(","))?;
        line("CACERT", ca.display().to_string())?;
        line("CERT", cert.display().to_string())?;
        line("KEY", key.display().to_string())
    }
}
