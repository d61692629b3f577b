"""Client-side encryption in the AWS Encryption SDK's message format."""
