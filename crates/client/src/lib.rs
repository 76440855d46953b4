//! Recipes over the API of a regional ring: fenced roles and locks, leader election without a
//! thundering herd, and mirrors of a prefix that survive compaction.
//!
//! | You want | Take |
//! |---|---|
//! | exactly one process to act, whatever happens | [`lock::run_as_leader`], and a [`guard`] at the resource |
//! | the same, holding the role yourself | [`lock::fenced_lock`] or [`role::try_role`] |
//! | to save work that may be done twice | [`lock::try_hint`] |
//! | to show who leads, in etcd's layout | [`election::campaign`] |
//! | to change a key that others change | [`update::update`] |
//! | a local copy of many keys | [`mirror::Mirror`] |
//! | to go to the member that leads, and elsewhere when it is away | [`Ring::of`] |
//!
//! # The whole of it
//!
//! The resource keeps a [`guard::Guard`] beside its data, or a [`guard::GuardLayer`] in front of its
//! service; here the former. The second write comes from a holder that was paused while its role went
//! to another, and is refused without a request to the ring:
//!
//! ```
//! use satrap_client::FencingToken;
//! use satrap_client::guard::Guard;
//!
//! struct Account { guard: Guard, balance: i64 }
//!
//! impl Account {
//!     fn set(&mut self, token: FencingToken, balance: i64) -> Result<(), String> {
//!         self.guard.admit(token).map_err(|stale| stale.to_string())?;
//!         self.balance = balance;
//!         Ok(())
//!     }
//! }
//!
//! let token = |counter| FencingToken { epoch: 1, counter };
//! let mut account = Account { guard: Guard::new(), balance: 0 };
//! assert!(account.set(token(33), 100).is_ok());
//! assert!(account.set(token(34), 200).is_ok());
//! let refused = account.set(token(33), 100).unwrap_err();
//! assert_eq!(refused, "stale fencing token 1-33: 1-34 has been seen, so the role has a newer holder");
//! assert_eq!(account.balance, 200);
//! ```
//!
//! The process that acts gets its token from the ring, and stops when its leadership ends:
//!
//! ```no_run
//! use std::time::Duration;
//! use satrap_client::lock::run_as_leader;
//! use satrap_client::role::{Candidate, Exit};
//! use satrap_client::{Ring, Terms};
//!
//! # async fn example(stop: impl Future<Output = ()>) -> Result<(), Box<dyn std::error::Error>> {
//! let channel = tonic::transport::Channel::from_static("http://127.0.0.1:2379").connect().await?;
//! let ring = Ring::over(channel);
//! let (role, name) = ("billing".to_owned(), "host-7".to_owned());
//! let me = Candidate { role, name, terms: Terms::of(10) };
//! let exit = run_as_leader(&ring, &me, stop, Duration::from_secs(2), |leadership| async move {
//!     while leadership.is_current() {
//!         // Work that carries `leadership.token()` to every resource it changes.
//!         tokio::select! {
//!             () = leadership.ended() => break,
//!             () = tokio::time::sleep(Duration::from_secs(1)) => {}
//!         }
//!     }
//! });
//! match exit.await? {
//!     Exit::Ended(()) => println!("done"),
//!     Exit::Lost(why) => println!("another process may act now: {why}"),
//!     Exit::Stopped(_) => println!("stopped, and the role given back"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Deliberately absent
//!
//! Background tasks, so that nothing renews a role on behalf of work that hangs. A general client:
//! the generated ones of `satrap_proto`, and every etcd client, speak to the ring as it is.

pub mod election;
pub mod error;
pub mod guard;
mod keep;
mod leader;
pub mod lock;
pub mod mirror;
mod queue;
pub mod ring;
pub mod role;
mod session;
pub mod tenure;
pub mod token;
pub mod update;
mod wire;

pub use error::Error;
pub use queue::Waited;
pub use ring::Ring;
pub use tenure::{Lost, Terms};
pub use token::FencingToken;
