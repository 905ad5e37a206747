"""Shared by all benchmarks: model shapes, inputs, timing, floors."""
