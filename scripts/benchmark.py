"""Measure accuracy, speed and memory, beside other programs on the same machine."""

if __name__ == "__main__":
    # A worker process imports this module again: the memory of a run is its own.
    from whisper_bench.cli import main

    main()
