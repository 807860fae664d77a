"""An agent that learns an expense desk's house rules from its rejections. Run it with `reflect demo`."""
