//! Makes a realm from a plan: genesis, keys, certificates, and one directory per process.
//!
//! Reading order: [`plan`] (the input), [`text`] (the plan as TOML), [`layout`] (the paths),
//! [`configs`] (configuration files of the daemons), [`create`] (writes everything), [`description`]
//! (`realm.json`, for commands and scripts).

pub mod configs;
pub mod create;
pub mod description;
pub mod layout;
pub mod plan;
pub mod text;

pub use create::{CreateError, create, create_described};
pub use description::Description;
pub use layout::RealmFiles;
pub use plan::{
    DiskPlan, EdgePlan, EtcdPlan, Lifetimes, MemberPlan, PlanError, RealmPlan, RegionPlan,
    ValidatorPlan,
};
