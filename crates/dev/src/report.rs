//! Prints the last lines of `dev`: commands to try next, or what became of the lies.

use std::path::Path;

use satrap_certify::BundleName;
use satrap_edge_agent::paths;
use satrap_lies::Lie;
use satrap_realm::Description;

use crate::{error::DevError, liars::Told, plan, roster, witness::edge_status};

/// Addresses, and four things to try.
#[must_use]
pub fn welcome(description: &Description, state_dir: &Path) -> String {
    let mut text = String::from("\nThe realm is up.\n");
    for v in &description.validators {
        text += &format!("  validator {:<10} {}\n", v.name, v.url);
    }
    for region in &description.regions {
        for m in &region.members {
            let name = format!("{}-{}", region.name, m.name);
            text += &format!("  member    {name:<10} {}\n", m.client_url);
        }
    }
    for edge in &description.edges {
        text += &format!("  edge      {:<10} {}\n", edge.name, edge.active_dir.display());
    }
    let bundle = BundleName::new(plan::BUNDLE).expect("a constant name");
    let link = paths::flat(&bundle);
    let edge = description.edges.first().map(|e| e.active_dir.join(link));
    let edge = edge.unwrap_or_default();
    let pid = description.validators.first().and_then(|v| v.pid).unwrap_or_default();
    let dir = state_dir.display();
    text += &format!(
        "\nFour things to try in another terminal:\n\
         \x20 satrap status --realm {dir}\n\
         \x20 kill -9 {pid}          # a validator: the others go on, it comes back\n\
         \x20 eval \"$(satrap etcd env --realm {dir})\" && etcdctl put hello world\n\
         \x20 openssl storeutl -noout -certs {}/{}\n\
         \nCtrl-c stops everything; started again, it resumes.",
        edge.display(),
        plan::COMBINED_FILE
    );
    text
}

/// One lie and what its victim says about it.
#[derive(Debug)]
struct Verdict {
    told: Told,
    rule: Option<String>,
    detail: String,
}

impl Verdict {
    fn is_refused_as_expected(&self) -> bool {
        let rules = self.told.lie.refused_by();
        self.rule.as_ref().is_some_and(|rule| rules.contains(&rule.as_str()))
    }
}

/// Holds what the liars told against what the edges refused, lie by lie, and prints it.
///
/// # Errors
///
/// [`DevError::Lies`] unless every lie was told, and each one that was told was refused by a rule
/// that is meant to refuse it.
pub fn lies(told: &[Told], description: &Description, json: bool) -> Result<(), DevError> {
    let mut verdicts = Vec::new();
    for edge in &description.edges {
        let mut refusals = edge_status(&roster::status_file(edge))
            .map(|s| s.refusals)
            .unwrap_or_default()
            .into_iter();
        // An edge meets one server at a time, so its refusals come in the order of the lies.
        for told in told.iter().filter(|told| told.edge == edge.name) {
            let refusal = refusals.find(|refusal| refusal.peer == told.member);
            verdicts.push(Verdict {
                told: told.clone(),
                rule: refusal.as_ref().map(|r| r.rule.clone()),
                detail: refusal.map_or_else(|| "not refused".into(), |r| r.detail),
            });
        }
    }
    verdicts.sort_by_key(|verdict| verdict.told.lie);
    for verdict in &verdicts {
        print(verdict, json);
    }
    let all_told = Lie::ALL.iter().all(|lie| verdicts.iter().any(|v| v.told.lie == *lie));
    if all_told && verdicts.iter().all(Verdict::is_refused_as_expected) {
        Ok(())
    } else {
        Err(DevError::Lies)
    }
}

fn print(verdict: &Verdict, json: bool) {
    let Told { edge, member, lie } = &verdict.told;
    let rule = verdict.rule.as_deref().unwrap_or("-");
    if json {
        let line = serde_json::json!({
            "lie": lie.name(),
            "told_by": member,
            "told_to": edge,
            "refused_by": verdict.rule,
            "detail": verdict.detail,
            "as_expected": verdict.is_refused_as_expected(),
        });
        println!("{line}");
    } else {
        let detail: String = verdict.detail.chars().take(90).collect();
        println!("  {:<20} {member:<6} to {edge:<10} refused by {rule:<4} {detail}", lie.name());
    }
}
