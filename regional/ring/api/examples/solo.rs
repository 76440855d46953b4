//! Serves the API of a ring of one member without log or disk, in plaintext on this host:
//! `solo [ADDRESS]`, by default 127.0.0.1:2379. For trying clients; everything is lost at exit.

#[allow(dead_code, reason = "tests use more of it")]
#[path = "../tests/common/solo.rs"]
mod solo;

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;

use satrap_ring_api::api::Api;
use satrap_ring_api::front::{ClientListener, Security};
use satrap_ring_api::{introspect, services};
use satrap_runtime::Shutdown;

fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:2379".to_owned());
    let address: SocketAddr = address.parse()?;
    let (backend, ring) = solo::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let api = Arc::new(Api::new(backend));
        let routes = services::routes(&api, services::Settings::default());
        let routes = introspect::add(routes, &Shutdown::default());
        let front = ClientListener::bind(address, Security::Plaintext).await?;
        println!("serving on {}", front.local_address()?);
        let asked = async { drop(tokio::signal::ctrl_c().await) };
        front.serve(api, routes, asked).await?;
        Ok::<_, Box<dyn Error>>(())
    })?;
    ring.join().map_err(|_| "the ring's thread panicked")?;
    Ok(())
}
