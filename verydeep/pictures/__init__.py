"""What every picture and page is drawn with: figures, charts, colours, text, layout."""
