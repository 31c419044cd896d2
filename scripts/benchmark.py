"""Measure accuracy, speed and memory, beside other programs on the same machine."""

if __name__ == "__main__":
    # The process of a run imports this module again, and is to import no more than it needs.
    from whisper_bench.cli import main

    main()
