"""The command ``dynamo``: look at a deployment, call it, load it, and find out what is wrong with it."""
