//! Writes 60 certified blocks, over validator sets of 4, 5 and 4, for light clients that are not
//! ours: for each block a big-endian `u32` length and a protobuf `tendermint.types.LightBlock`.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
};

use satrap_sim::SimRealm;

const HEIGHTS: u64 = 60;

fn main() -> io::Result<()> {
    let path = std::env::args_os().nth(1).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "expected one argument: the file to write")
    })?;
    let mut realm = SimRealm::new("interop", 4);
    let blocks = realm.four_five_four(HEIGHTS);
    let mut file = BufWriter::new(File::create(path)?);
    for block in &blocks {
        let bytes = block.light_block(realm.genesis.realm());
        let length = u32::try_from(bytes.len()).expect("a light block has some kilobytes");
        file.write_all(&length.to_be_bytes())?;
        file.write_all(&bytes)?;
    }
    file.flush()?;
    println!("{} light blocks", blocks.len());
    Ok(())
}
