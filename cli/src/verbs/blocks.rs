//! `satrap blocks`: exports decided blocks for other Tendermint light clients.
//!
//! The file is a sequence of `length (u32, big-endian) | tendermint.types.LightBlock (protobuf)`.
//! This command verifies none of it: the reader of the file verifies the signatures.

use std::{fmt, path::PathBuf, time::Duration};

use satrap_operator::{
    Error,
    client::{Client, Connection, Endpoint},
    text::count,
};
use satrap_proto::fault;
use satrap_proto::v1::{LightBlockReply, LightBlocksRequest, control_client::ControlClient};
use satrap_runtime::files;
use serde::Serialize;
use tokio::time::timeout;
use tonic::Streaming;

use crate::{output::Output, verbs::block_on};

/// One light block with its payload: a full block and room for the largest validator set.
const MESSAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// An export is held in memory until it is complete.
const EXPORT_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Tendermint heights are `i64`.
const HEIGHT_MAX: u64 = i64::MAX as u64;
/// Between two blocks of a stream.
const NEXT_WITHIN: Duration = Duration::from_secs(10);

/// Arguments of `blocks`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// First height
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=HEIGHT_MAX))]
    from: u64,
    /// Last height; 0 for the newest
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=HEIGHT_MAX))]
    to: u64,
    /// Where to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Serialize)]
struct Exported {
    file: PathBuf,
    chain_id: String,
    from: u64,
    to: u64,
    blocks: usize,
    bytes: usize,
    by: String,
}

/// Exports.
///
/// # Errors
///
/// If no validator has the blocks, or the file cannot be written.
pub fn run(args: &Args, output: &Output) -> Result<(), Error> {
    if args.to != 0 && args.to < args.from {
        let Args { from, to, .. } = args;
        return Err(Error::usage(format!(
            "--from {from} is above --to {to}; heights go up, and --to 0 is the newest"
        )));
    }
    let client = Client::open(&args.connection)?;
    let (export, by) = block_on(fetch(&client, args))?;
    files::write(&args.out, &export.bytes).map_err(|e| Error::file("export", &args.out, &e))?;
    output.show(&Exported {
        file: args.out.clone(),
        chain_id: client.genesis.realm().chain_id().to_owned(),
        from: args.from,
        to: args.from + export.blocks as u64 - 1,
        blocks: export.blocks,
        bytes: export.bytes.len(),
        by,
    })
}

#[derive(Default)]
struct Export {
    bytes: Vec<u8>,
    blocks: usize,
}

async fn fetch(client: &Client, args: &Args) -> Result<(Export, String), Error> {
    let mut reasons = Vec::new();
    for endpoint in &client.endpoints {
        match fetch_from(client, endpoint, args).await {
            Ok(export) => return Ok((export, endpoint.label.clone())),
            Err(why) => reasons.push(format!("  {}: {why}", endpoint.label)),
        }
    }
    Err(Error::unavailable(format!(
        "no server exported the blocks; only validators have them\n{}",
        reasons.join("\n")
    )))
}

async fn fetch_from(client: &Client, endpoint: &Endpoint, args: &Args) -> Result<Export, String> {
    let channel = client.channel(endpoint).await.map_err(|e| e.to_string())?;
    let mut control = ControlClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut export = Export::default();
    // The server chooses the number of blocks per page; an empty page is the end.
    loop {
        let from_height = args.from + export.blocks as u64;
        if args.to != 0 && from_height > args.to {
            break;
        }
        let request = LightBlocksRequest { from_height, to_height: args.to };
        let page = control.light_blocks(request).await;
        let page = page.map_err(|status| fault::describe(&status))?.into_inner();
        if fetch_page(page, args.from, &mut export).await? == 0 {
            break;
        }
    }
    let wanted = args.to.checked_sub(args.from).map(|span| span + 1);
    match export.blocks as u64 {
        0 => Err(format!("it has no block from height {} on", args.from)),
        n if args.to != 0 && Some(n) != wanted => Err(format!("it has only {n} of the blocks")),
        _ => Ok(export),
    }
}

/// Appends the blocks of one page and returns how many they were.
async fn fetch_page(
    mut page: Streaming<LightBlockReply>,
    from: u64,
    export: &mut Export,
) -> Result<usize, String> {
    let before = export.blocks;
    loop {
        let next = timeout(NEXT_WITHIN, page.message()).await;
        let next = next.map_err(|_| format!("it sent nothing for {NEXT_WITHIN:?}"))?;
        let Some(block) = next.map_err(|status| fault::describe(&status))? else {
            return Ok(export.blocks - before);
        };
        let expected = from + export.blocks as u64;
        if block.height != expected {
            return Err(format!("it sent height {} where {expected} was due", block.height));
        }
        let bytes = u32::try_from(block.light_block.len()).expect("a message is at most 2 MiB");
        export.bytes.extend_from_slice(&bytes.to_be_bytes());
        export.bytes.extend_from_slice(&block.light_block);
        export.blocks += 1;
        if export.bytes.len() > EXPORT_BYTES_MAX {
            return Err(format!(
                "more than {EXPORT_BYTES_MAX} bytes; export fewer heights at once"
            ));
        }
    }
}

impl fmt::Display for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, chain_id, from, to, blocks, bytes, by } = self;
        let blocks = count(*blocks, "light block", "light blocks");
        let file = file.display();
        writeln!(f, "{blocks} of chain `{chain_id}` (heights {from} to {to}, {bytes} bytes)")?;
        writeln!(f, "  written to {file}, as served by {by}; a light client must verify them")
    }
}
