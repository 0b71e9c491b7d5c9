"""From a prompt to new text: prefill, decoding, sampling, and many callers at once. Decides no path and no plan."""
