//! `pagoda chat [MODEL]`: a conversation on the terminal, or one message a line from a pipe.

use std::io::{BufRead, IsTerminal};
use std::path::Path;

use anyhow::Result;
use pagoda_backends::{BackendError, ChatMessage, ChatPrompt, GenerateRequest, GenerationConfig, InferenceBackend, Prompt};
use tokio::sync::mpsc;

use super::{answer, context, flags::Flags, models, progress::Progress, sampling::Sampling, terminal};

const HELP: &str = "/reset forgets the conversation, /system TEXT sets the system message, /exit ends, Ctrl-C ends an answer";

/// Arguments of `pagoda chat`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Folder, .gguf file, hub id or alias; none: the default model
    model: Option<String>,
    /// System message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    flags: Flags<false>,
}

/// A conversation so far.
struct Conversation<'a> {
    backend: &'a dyn InferenceBackend,
    config: GenerationConfig,
    system: Option<String>,
    messages: Vec<ChatMessage>,
}

/// Runs the command.
pub fn run(arguments: &Arguments, file: Option<&Path>) -> Result<()> {
    let config = context::quiet_config(&arguments.flags.values, file)?;
    arguments.sampling.over(GenerationConfig::default())?;
    let target = models::target_for(&config, arguments.model.as_deref())?;
    let running = target.load(&context::hub()?, &config, &mut Progress::new())?;
    let mut conversation = Conversation {
        backend: &*running.backend,
        config: arguments.sampling.over(running.backend.default_config())?,
        system: arguments.system.clone(),
        messages: Vec::new(),
    };
    let is_interactive = std::io::stdin().is_terminal();
    if is_interactive {
        terminal::note(&format!("{}: type a message; {HELP}", running.name));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(converse(&mut conversation, is_interactive));
    // The thread that reads stdin may wait for a line that never comes.
    runtime.shutdown_background();
    outcome
}

async fn converse(conversation: &mut Conversation<'_>, is_interactive: bool) -> Result<()> {
    let mut lines = stdin_lines();
    loop {
        if is_interactive {
            terminal::print("> ")?;
        }
        let line = tokio::select! {
            line = lines.recv() => line.transpose()?,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(line) = line else { return Ok(()) };
        match line.trim() {
            "" => {}
            "/exit" | "/quit" => return Ok(()),
            "/help" => terminal::note(HELP),
            "/reset" => conversation.messages.clear(),
            text => match text.strip_prefix("/system") {
                Some(system) => conversation.set_system(system.trim()),
                None => conversation.turn(text, is_interactive).await?,
            },
        }
    }
}

/// Lines of stdin, read on a thread of their own so that Ctrl-C is noticed meanwhile.
fn stdin_lines() -> mpsc::Receiver<std::io::Result<String>> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let is_last = line.is_err();
            if sender.blocking_send(line).is_err() || is_last {
                return;
            }
        }
    });
    lines
}

impl Conversation<'_> {
    fn set_system(&mut self, text: &str) {
        self.system = (!text.is_empty()).then(|| text.to_string());
        self.messages.clear();
    }

    async fn turn(&mut self, text: &str, is_interactive: bool) -> Result<()> {
        self.messages.push(message("user", text));
        let system = self.system.as_deref().map(|text| message("system", text));
        let messages = system.into_iter().chain(self.messages.iter().cloned()).collect();
        let prompt = Prompt::Chat(ChatPrompt { messages, add_generation_prompt: true, ..ChatPrompt::default() });
        let request = GenerateRequest { prompt, config: self.config.clone() };
        match answer::show(self.backend, request).await {
            Ok(answer) => {
                terminal::print("\n")?;
                if is_interactive {
                    terminal::note(&format!("[{}]", answer.summary()));
                }
                self.messages.push(message("assistant", &answer.text));
                Ok(())
            }
            // A conversation can outgrow the window; the terminal's user can start over.
            Err(error) if is_interactive && matches!(error.downcast_ref(), Some(BackendError::PromptTooLong { .. })) => {
                self.messages.pop();
                terminal::note(&format!("{error}; /reset starts over"));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage { role: role.into(), content: content.into(), ..ChatMessage::default() }
}
