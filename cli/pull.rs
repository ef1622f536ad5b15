//! `pagoda pull MODEL`: brings a model into the cache and prints its path.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use super::{context, progress::Progress, terminal};

/// Arguments of `pagoda pull`.
#[derive(clap::Args)]
#[command(after_help = aliases())]
pub struct Arguments {
    /// Hub id (org/name, org/name:PART_OF_GGUF_NAME) or alias; none: the default model
    model: Option<String>,
}

/// Runs the command.
pub fn run(arguments: &Arguments, file: Option<&Path>) -> Result<()> {
    let config = context::quiet_config(&BTreeMap::new(), file)?;
    let hub = context::hub()?;
    let model = arguments.model.as_deref().or(config.model.as_deref());
    let located = hub.resolve(model, &mut Progress::new())?;
    terminal::note(&format!("{} (from {})", located.name, located.from));
    terminal::print(&format!("{}\n", located.path.display()))?;
    Ok(())
}

fn aliases() -> String {
    let lines: Vec<String> = pagoda::hub::ALIASES.iter().map(|(alias, id)| format!("  {alias:<22} {id}")).collect();
    format!("Aliases:\n{}", lines.join("\n"))
}
