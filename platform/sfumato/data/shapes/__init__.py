"""Pictures of coloured shapes with captions: what may be in one, how it is drawn, said, and read back.

vocabulary   shapes, colours, sizes, relations, and the combinations that training never shows
scenes       draws what is in a picture, from a seed and its number
rendering    pictures and maps of scenes
phrases      captions of scenes
claims       what a caption demands of a picture, and whether it is so
checker      what is in a picture
"""
