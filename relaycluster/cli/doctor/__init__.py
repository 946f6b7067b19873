"""`relaycluster doctor`: looks at a live node from outside and says what is not as it should be."""
