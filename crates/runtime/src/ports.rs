//! Keeps loopback ports for processes that will listen on them.
//!
//! The addresses of a realm are written into its files before any of its processes runs. A port that
//! was free when it was written down and given back may belong to another process by the time it is
//! bound: to another program, or to an outgoing connection. So a socket stays bound to each port,
//! without listening, until the reservation is dropped.
//!
//! # Invariants
//!
//! - **PORTS-1** The kernel gives a reserved port to no process that asks for any free one.
//! - **PORTS-2** A process binds a reserved port by its number, and again after it died. Both sockets
//!   have `SO_REUSEADDR`, as all listeners of this program and of etcd do.
//! - **PORTS-3** A reserved port on which no process listens refuses connections.
//!
//! # Deliberately absent
//!
//! Handing a listening socket to the process: while the process is dead, its clients would wait in
//! the backlog instead of going to another server. Only Linux lets a second socket bind the port of
//! a first one that does not listen; elsewhere ports are given back at once, as free as they were.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use tokio::net::TcpSocket;

/// Ports that no other process gets. Dropping it gives them back.
#[derive(Debug)]
pub struct Reserved {
    addresses: Vec<SocketAddr>,
    _bound: Vec<TcpSocket>,
}

impl Reserved {
    /// Reserves `count` loopback ports that are free.
    ///
    /// # Errors
    ///
    /// If the operating system has no more of them.
    pub fn any(count: usize) -> io::Result<Self> {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self::bind((0..count).map(|_| any)).map_err(|(_, error)| error)
    }

    /// Reserves these addresses.
    ///
    /// # Errors
    ///
    /// The first address that another process uses, and what the operating system says about it.
    pub fn these(
        addresses: impl IntoIterator<Item = SocketAddr>,
    ) -> Result<Self, (SocketAddr, io::Error)> {
        Self::bind(addresses)
    }

    /// The reserved addresses, in the order in which they were asked for.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    fn bind(wanted: impl IntoIterator<Item = SocketAddr>) -> Result<Self, (SocketAddr, io::Error)> {
        let bound = wanted.into_iter().map(|address| bind(address).map_err(|e| (address, e)));
        let bound: Vec<_> = bound.collect::<Result<_, _>>()?;
        let (addresses, sockets) = bound.into_iter().unzip();
        let kept = if cfg!(target_os = "linux") { sockets } else { Vec::new() };
        Ok(Self { addresses, _bound: kept })
    }
}

fn bind(address: SocketAddr) -> io::Result<(SocketAddr, TcpSocket)> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok((socket.local_addr()?, socket))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{collections::BTreeSet, net::TcpListener, net::TcpStream};

    use super::*;

    /// PORTS-1: neither listeners nor outgoing connections get a reserved port.
    #[test]
    fn no_process_that_asks_for_any_port_gets_a_reserved_one() {
        let reserved = Reserved::any(100).unwrap();
        let ours: BTreeSet<_> = reserved.addresses().iter().copied().collect();
        assert_eq!(ours.len(), 100);
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let others: Vec<_> = (0..200)
            .map(|_| {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let outgoing = TcpStream::connect(target.local_addr().unwrap()).unwrap();
                // A connection that is not accepted would fill the backlog, and the next one wait.
                let (accepted, _) = target.accept().unwrap();
                (listener, outgoing, accepted)
            })
            .collect();
        for (listener, outgoing, _) in &others {
            assert!(!ours.contains(&listener.local_addr().unwrap()));
            assert!(!ours.contains(&outgoing.local_addr().unwrap()));
        }
    }

    /// PORTS-2, PORTS-3
    #[test]
    fn a_reserved_port_is_bound_by_number_again_and_again() {
        let reserved = Reserved::any(1).unwrap();
        let address = reserved.addresses()[0];
        for _ in 0..2 {
            let refused = TcpStream::connect(address).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
            let listener = TcpListener::bind(address).unwrap();
            TcpStream::connect(address).unwrap();
            let second = TcpListener::bind(address).unwrap_err();
            assert_eq!(second.kind(), io::ErrorKind::AddrInUse, "it listens once");
            drop(listener);
        }
    }

    #[test]
    fn a_port_that_is_in_use_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = listener.local_addr().unwrap();
        let (address, error) = Reserved::these([taken]).unwrap_err();
        assert_eq!((address, error.kind()), (taken, io::ErrorKind::AddrInUse));
    }
}
