//! Makes a realm from a plan: genesis, keys, certificates, and one directory per process.
//!
//! Reading order: [`plan`] (what is wanted), [`text`] (the plan as TOML), [`layout`] (what lies
//! where), [`configs`] (what the daemons read), [`create`] (makes it), [`description`] (`realm.json`,
//! what the other verbs and scripts read).

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
