"""The interfaces that clients speak: shapes of JSON in and out, a file for each. They know nothing of batches."""
