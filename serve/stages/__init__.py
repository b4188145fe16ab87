"""The stages of an answer: plain classes over a batch of requests, testable without Ray."""
