"""Rehearse without a network: an orchestrator on this machine, a recording at the pace of speech,
captions on the terminal."""

from whisper_sim.rehearsal import main

if __name__ == "__main__":
    main()
