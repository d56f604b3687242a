"""What ranks do in a step and when, as the cost model predicts it and as it was measured, in one form: a file of trace
events that Perfetto and Chrome show, with the same names and tracks for both."""
