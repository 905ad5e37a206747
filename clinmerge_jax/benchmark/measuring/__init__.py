"""What all benchmarks share: model shapes, inputs, timing, floors."""
